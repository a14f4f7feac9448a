"""Progress in a log: how much is done, counted once, whoever counts it."""

import concurrent.futures

import pytest

from wsi_jax.run import progress as module
from wsi_jax.run.progress import progress


@pytest.fixture
def talkative(monkeypatch):
    """Says something at every advance."""
    monkeypatch.setattr(module, "EVERY_S", -1)


def test_it_says_at_last_how_much_was_done(capsys):
    with progress("tiles", 7) as advance:
        advance(3)
        advance(4, "note")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("tiles: 7 of 7, ")
    assert "left" not in line


@pytest.mark.usefixtures("talkative")
def test_what_an_earlier_run_did_counts_but_not_for_the_pace(capsys):
    with progress("training", 100) as advance:
        advance(60, before=True)
        advance(10, "loss 0.5")
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("training: 60 of 100, 0.0/s")
    assert "left" not in first  # nothing to tell it by
    assert second.startswith("training: 70 of 100, ")
    assert second.endswith(" s left, loss 0.5")
    assert last.startswith("training: 70 of 100, ")


def test_nothing_to_do_is_no_error(capsys):
    with progress("heatmaps", 0):
        pass
    assert capsys.readouterr().out.startswith("heatmaps: 0 of 0, ")


def test_threads_may_count(capsys):
    pool = concurrent.futures.ThreadPoolExecutor(8)
    with progress("tissue", 4000) as advance, pool:
        for _ in range(4000):
            pool.submit(advance)
    assert capsys.readouterr().out.startswith("tissue: 4000 of 4000, ")
