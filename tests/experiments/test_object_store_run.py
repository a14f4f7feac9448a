"""A run whose folder is in an object store: stopped, gone on with, used, like any."""

import os
import signal

import pytest
from run_files import by_slide, outputs, read_json

import wsi_jax
from wsi_jax import cli, locks
from wsi_jax.files import any_path
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.extract import extract_command
from wsi_jax.run.finished_run import Run
from wsi_jax.run.interrupts import stoppable
from wsi_jax.run.run_folder import RunError
from wsi_jax.training.log import read_metrics


@pytest.fixture
def folder(bucket, monkeypatch):
    monkeypatch.setattr(locks, "SETTLE_S", 0)
    return any_path(f"{bucket.path}/runs/tiny")


def test_features_stay_on_a_disk_and_one_error_says_so(folder, short, tmp_path):
    short.features = ""
    for config, run_dir in ((short, folder), (short, tmp_path / "run")):
        with pytest.raises(RunError) as caught:
            experiment.run(config, run_dir)
        assert str(caught.value).endswith("or a mounted one, by --config.features")
        assert str(caught.value).startswith(str(folder))
        short.features = f"{folder}/features"
    assert not (tmp_path / "run").exists()
    short.features, short.shard = str(tmp_path), "0/2"
    with pytest.raises(RunError, match="--status need a run folder on a disk"):
        extract_command.run(short, folder)


@pytest.mark.long
def test_a_run_in_a_bucket_is_stopped_goes_on_and_is_used(
    bucket, folder, short, row, tmp_path
):
    short.heatmaps = 1

    def stop(name):
        if name.endswith("metrics.jsonl") and bucket.objects[name][0]:
            os.kill(os.getpid(), signal.SIGTERM)

    bucket.on_upload = stop  # before the first checkpoint: it is made one step later
    with pytest.raises(SystemExit) as stopped, stoppable():
        experiment.run(short, folder)
    bucket.on_upload = lambda name: None
    assert stopped.value.code == 128 + signal.SIGTERM
    names = {name.removeprefix("runs/tiny/") for name in bucket.objects}
    assert {"config.json", "cost.json", "slides.csv", "tissue.png"} <= names
    assert not names & {locks.LEASE, "report.html"}

    report, local = experiment.run(short, folder), tmp_path / "local"
    experiment.run(short, local)  # never stopped, and on a disk
    assert outputs(folder) == outputs(local)
    logs = [next(one.glob("*/metrics.jsonl")) for one in (folder, local)]
    assert read_metrics(logs[0]) == read_metrics(logs[1])
    costs = [read_json(one / "cost.json") for one in (folder, local)]
    assert costs[0]["steps"] == costs[1]["steps"] == 4
    assert costs[0]["repeated_steps"] == 0
    page = report.read_text()
    assert page.count("data:image/webp") == (local / "report.html").read_text().count(
        "data:image/webp"
    )
    assert {name.rpartition("/")[2] for name in bucket.objects} >= {"roc.png"}

    run, out = Run(str(folder)), tmp_path / "out"
    words = ["predict", "--run", str(folder), "--out", str(out), row.path]
    cli.app(words, standalone_mode=False)
    (line,) = by_slide(out / "predictions.csv").values()
    (tested,) = (one for one in run.predictions if one["slide_id"] == row.slide_id)
    assert line["prediction"] == tested["prediction"]
    name = f"p_{line['prediction']}"
    assert float(line[name]) == pytest.approx(float(tested[name]), abs=1e-5)
    assert wsi_jax.load(run).folder == folder

    cli.app(["compare", str(folder), str(local)], standalone_mode=False)
    others = ["--manifest", str(folder / "manifest.csv")]
    cli.app(["evaluate", str(folder), *others], standalone_mode=False)
    assert "runs/tiny/external/manifest/report.html" in bucket.objects
