"""A run that is killed, without warning, and started again is a run."""

import csv
import json
import random
import signal
import subprocess

import h5py
import pytest
from processes import finish, kill_at, outputs

from wsi_jax.evals.cost_meter import WORK
from wsi_jax.locks import LOCK
from wsi_jax.training.log import read_metrics

# Long enough to be caught in the middle, with a checkpoint every five steps.
LONG = (
    "--config.train.steps=40",
    "--config.train.save_every=5",
    "--config.train.validate_every=10",
    "--config.train.patience=0",
    "--config.heatmaps=0",
)


@pytest.fixture(scope="module")
def words(tiny_file, manifest, tmp_path_factory):
    """A command line; all share features, unless extraction is to be seen."""
    shared = tmp_path_factory.mktemp("features")

    def line(folder, *more, features=shared):
        return (
            "--config",
            str(tiny_file),
            f"--config.data.manifest={manifest}",
            f"--config.features={features or ''}",
            f"--config.run_dir={folder}",
            *LONG,
            *more,
        )

    return line


def assert_stopped(process, which):
    """One line, and no traceback."""
    text = process.log.read_text()
    assert text.splitlines()[-1].startswith(f"stopped by {which}; what is done is kept")
    assert "Traceback" not in text


def cost(folder):
    return json.loads((folder / "cost.json").read_text())


def useful(folder):
    """Work counted, but for what was done again and for seconds."""
    counted = {name: cost(folder)[name] for name in WORK}
    assert counted["steps"] > 0
    assert counted["flops"] > 0
    return counted


def slides_of(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return [line["slide_id"] for line in csv.DictReader(file)]


@pytest.fixture(scope="module")
def undisturbed(start, words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(start("experiments.cohort", *words(folder)))
    assert len(slides_of(folder)) == 6
    return folder


@pytest.mark.parametrize(
    "which", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.long)]
)
def test_killed_in_training_it_ends_as_if_nothing_had_been(
    start, words, undisturbed, tmp_path, which
):
    folder = tmp_path / "run"
    command = ("experiments.cohort", *words(folder, features=None))
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
    finish(start(*command))
    assert outputs(folder) == outputs(undisturbed)
    lines = read_metrics(log)
    assert lines[0].pop("mark") == 1
    assert lines == read_metrics(undisturbed / "train" / "metrics.jsonl")
    assert useful(folder) == useful(undisturbed)
    assert cost(folder)["repeated_steps"] < (1 if which == signal.SIGTERM else 35)
    assert not any(cost(undisturbed)[f"repeated_{name}"] for name in WORK)


@pytest.mark.long
@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_extraction_it_encodes_only_what_is_missing(
    start, words, undisturbed, tmp_path, which
):
    folder = tmp_path / "run"
    small = "--config.encode_batch=1"  # slides come one by one, not all at once
    command = ("experiments.cohort", *words(folder, small, features=None))
    process = start(*command)
    code = kill_at(process, folder, "features/*/*/*.h5", which)
    assert code == {signal.SIGKILL: -9, signal.SIGINT: 130}[which]
    if which == signal.SIGINT:
        assert_stopped(process, "SIGINT")
        assert json.loads((folder / "cost.json").read_text())["wall_s"] > 0
    done = {p: p.stat().st_mtime_ns for p in folder.glob("features/*/*/*.h5")}
    assert 0 < len(done) < 20
    assert not (folder / "train").exists()
    for path in done:  # what has its name is whole
        with h5py.File(path) as file:
            assert len(file["features"]) == len(file["coords"])
    finish(start(*command))
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert len(list(folder.glob("features/*/*/*.h5"))) == 20
    assert slides_of(folder) == slides_of(undisturbed)
    again = tmp_path / "again"
    finish(start("experiments.cohort", *words(again, small, features=None)))
    assert outputs(folder) == outputs(again)
    assert useful(folder) == useful(again)


@pytest.mark.long
def test_stopped_between_predictions_it_goes_on(start, undisturbed, manifest, tmp_path):
    slides = sorted(map(str, manifest.parent.rglob("*.tif")))
    out = tmp_path / "out"
    words = ("--run", str(undisturbed), "--out", str(out), *slides)
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
@pytest.mark.parametrize("pattern", ["train/state/40", "model.json", "metrics.json"])
def test_killed_after_training_it_still_reports(
    start, words, undisturbed, tmp_path, pattern
):
    """And accounts for what it did before it was killed, too."""
    folder = tmp_path / "run"
    command = ("experiments.cohort", *words(folder, features=None))
    kill_at(start(*command), folder, pattern)
    assert not (folder / "report.html").exists()
    before = cost(folder)
    finish(start(*command))
    assert outputs(folder) == outputs(undisturbed)
    assert (folder / "report.html").is_file()
    assert cost(folder)["slides"] == before["slides"] == 20
    assert cost(folder)["tiles"] == before["tiles"] > 0
    assert cost(folder)["wall_s"] > before["wall_s"]
    assert useful(folder) == useful(undisturbed)
    again = [name for name in WORK if cost(folder)[f"repeated_{name}"]]
    assert again == (["flops"] if pattern == "metrics.json" else again)


@pytest.mark.long
def test_killed_again_and_again_the_demo_ends_the_same(start, tmp_path):
    """Drawing its slides, too; moments are drawn from a seed."""

    def command(folder):
        return (
            "experiments.camelyon16",
            "--config",
            "experiments/configs/demo.py",
            f"--config.data.root={tmp_path / folder / 'slides'}",
            f"--config.run_dir={tmp_path / folder / 'run'}",
        )

    finish(start(*command("whole")))
    rng, kills = random.Random(0), 0
    while kills < 12:
        process = start(*command("killed"))
        try:
            process.wait(rng.uniform(2, 40))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:
            finish(process)
            break
    finish(start(*command("killed")))
    assert kills > 2
    whole, killed = (tmp_path / name / "run" for name in ("whole", "killed"))
    assert outputs(killed) == outputs(whole)
    assert useful(killed) == useful(whole)
