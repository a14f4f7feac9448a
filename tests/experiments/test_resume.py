"""A run that is killed, without warning, and started again is a run."""

import json
import random
import signal
import subprocess

import h5py
import pytest
from processes import cohort_command, finish, go_on, kill_at
from run_files import by_slide, outputs, read_json, times

from wsi_jax.evals.cost_meter import WORK
from wsi_jax.locks import LOCK
from wsi_jax.training.log import read_metrics


@pytest.fixture(scope="module")
def words(tiny_file, manifest):
    """The command line of `finished` with more checkpoints, and no pictures."""
    often = {"train.save_every": 5}
    return lambda folder, **more: cohort_command(
        tiny_file, folder, manifest, **often, **more
    )


def assert_stopped(process, which):
    """One line, and no traceback."""
    text = process.log.read_text()
    assert text.splitlines()[-1].startswith(f"stopped by {which}; what is done is kept")
    assert "Traceback" not in text


def cost(folder):
    return read_json(folder / "cost.json")


def useful(folder):
    """Work counted, but for what was done again and for seconds."""
    counted = {name: cost(folder)[name] for name in WORK}
    assert counted["steps"] > 0
    assert counted["flops"] > 0
    return counted


def slides_of(folder):
    return list(by_slide(folder / "predictions.csv"))


@pytest.mark.parametrize(
    "which", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)]
)
def test_killed_in_training_it_ends_as_if_nothing_had_been(
    start, words, finished, tmp_path, which
):
    folder = tmp_path / "run"
    command = words(folder)
    process = start(*command)
    code = kill_at(process, folder, "train/state/5", which)
    if which == signal.SIGTERM:
        assert code == 143
        assert_stopped(process, "SIGTERM")
        assert not (folder / LOCK).exists()
        (saved,) = (folder / "train" / "state").iterdir()
        steps = [one["step"] for one in read_metrics(folder / "train/metrics.jsonl")]
        assert int(saved.name) >= max(steps)  # it is where it was, not where it saved
    assert not (folder / "model.json").exists()
    log = folder / "train" / "metrics.jsonl"
    # A mark in its log survives only if the run goes on, rather than begin again.
    first, *rest = read_metrics(log)
    assert first["step"] == 5
    marked = [first | {"mark": 1}, *rest]
    log.write_text("".join(json.dumps(line) + "\n" for line in marked))
    go_on(command)
    assert outputs(folder) == outputs(finished)
    lines = read_metrics(log)
    assert lines[0].pop("mark") == 1
    assert lines == read_metrics(finished / "train" / "metrics.jsonl")
    assert useful(folder) == useful(finished)
    assert cost(folder)["repeated_steps"] < (1 if which == signal.SIGTERM else 25)
    assert not any(cost(finished)[f"repeated_{name}"] for name in WORK)


@pytest.mark.long
@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_extraction_it_encodes_only_what_is_missing(
    start, words, finished, tmp_path, which
):
    folder = tmp_path / "run"
    command = words(folder, encode_batch=8)  # slides come one by one
    process = start(*command)
    code = kill_at(process, folder, "features/*/*/*.h5", which)
    assert code == {signal.SIGKILL: -9, signal.SIGINT: 130}[which]
    if which == signal.SIGINT:
        assert_stopped(process, "SIGINT")
        assert cost(folder)["wall_s"] > 0
    done = times(folder.glob("features/*/*/*.h5"))
    assert 0 < len(done) < 20
    assert not (folder / "train").exists()
    for path in done:  # what has its name is whole
        with h5py.File(path) as file:
            assert len(file["features"]) == len(file["coords"])
    finish(start(*command))
    assert times(done) == done
    assert len(list(folder.glob("features/*/*/*.h5"))) == 20
    assert slides_of(folder) == slides_of(finished)
    again = tmp_path / "again"
    finish(start(*words(again, encode_batch=8)))
    assert outputs(folder) == outputs(again)
    assert useful(folder) == useful(again)


@pytest.mark.long
def test_stopped_between_predictions_it_goes_on(start, finished, manifest, tmp_path):
    slides = sorted(map(str, manifest.parent.rglob("*.tif")))
    out = tmp_path / "out"
    words = ("--run", str(finished), "--out", str(out), *slides)
    process = start("experiments.predict", *words)
    code = kill_at(process, out, "predictions.csv", signal.SIGINT)
    assert code == 130
    assert_stopped(process, "SIGINT")
    before = slides_of(out)
    assert 0 < len(before) < len(slides)
    process = start("experiments.predict", *words)
    finish(process)
    assert len(slides_of(out)) == len(slides)
    assert not [name for name in before if f"{name}: " in process.log.read_text()]


@pytest.mark.long
@pytest.mark.parametrize("pattern", ["train/state/30", "model.json", "metrics.json"])
def test_killed_after_training_it_still_reports(
    start, words, finished, tmp_path, pattern
):
    """And accounts for what it did before it was killed, too."""
    folder = tmp_path / "run"
    command = words(folder)
    kill_at(start(*command), folder, pattern)
    assert not (folder / "report.html").exists()
    before = cost(folder)
    finish(start(*command))
    assert outputs(folder) == outputs(finished)
    assert (folder / "report.html").is_file()
    assert cost(folder)["slides"] == before["slides"] == 20
    assert cost(folder)["tiles"] == before["tiles"] > 0
    assert cost(folder)["wall_s"] > before["wall_s"]
    assert useful(folder) == useful(finished)
    again = [name for name in WORK if cost(folder)[f"repeated_{name}"]]
    assert again == (["flops"] if pattern == "metrics.json" else again)


@pytest.mark.long
def test_killed_again_and_again_the_demo_ends_the_same(start, tmp_path):
    """Drawing its slides, too; moments are drawn from a seed."""

    def begin(folder):
        return start(
            "experiments.camelyon16",
            "--config",
            "experiments/configs/demo.py",
            f"--config.data.root={tmp_path / folder / 'slides'}",
            f"--config.run_dir={tmp_path / folder / 'run'}",
            JAX_NUM_CPU_DEVICES="1",  # its batches do not divide among eight
        )

    finish(begin("whole"))
    rng, kills = random.Random(0), 0
    while kills < 12:
        process = begin("killed")
        try:
            process.wait(rng.uniform(2, 40))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:
            finish(process)
            break
    finish(begin("killed"))
    assert kills > 2
    whole, killed = (tmp_path / name / "run" for name in ("whole", "killed"))
    assert outputs(killed) == outputs(whole)
    assert useful(killed) == useful(whole)
