"""Progress in a log: how much is done, counted once, whoever counts it."""

import concurrent.futures

import pytest

from wsi_jax.run import progress as module
from wsi_jax.run.fit_stage import format_latest
from wsi_jax.run.progress import Pace, progress


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


def test_the_first_one_is_not_counted_in_the_pace():
    pace = Pace(100, "compiling")
    assert pace.note == "compiling ..."
    pace._began -= 50  # seconds that it took
    pace.add(1)
    assert pace.note == ""
    assert "left" not in str(pace)
    pace._began -= 10  # and of the next ten
    pace.add(10)
    assert round(pace.rate(), 1) == 1.0
    assert str(pace).endswith("60 s, 89 s left")
    assert pace.first_took() == "50 s of it compiling"


def test_a_log_names_what_delays_the_first_one(capsys):
    with progress("training", 2, "compiling") as advance:
        assert capsys.readouterr().out == "training: compiling ...\n"
        advance(2)
    assert capsys.readouterr().out.startswith("training: 2 of 2, ")


def test_the_bar_shows_loss_and_validation():
    metrics = {"train.loss": 0.25, "train.accuracy": 1.0, "val.auc": 0.5}
    assert format_latest(metrics, "-log_loss") == "loss 0.250, val AUC 0.500"
    assert format_latest({"val.log_loss": 0.5}, "-log_loss") == "val log_loss 0.500"
    assert format_latest({}, "auc") == ""


def test_nothing_to_do_is_no_error(capsys):
    with progress("heatmaps", 0):
        pass
    assert capsys.readouterr().out == ""


def test_threads_may_count(capsys):
    pool = concurrent.futures.ThreadPoolExecutor(8)
    with progress("tissue", 4000) as advance, pool:
        for _ in range(4000):
            pool.submit(advance)
    assert capsys.readouterr().out.startswith("tissue: 4000 of 4000, ")
