"""Features that another tool made: no slide is read, and the same is learnt."""

import csv
import pathlib

import h5py
import numpy as np
import pytest

import wsi_jax
from experiments import cohort as experiment
from experiments.experiment import RunError


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def theirs(finished, tmp_path_factory):
    """The features of a finished run as TRIDENT may write them."""
    folder = tmp_path_factory.mktemp("trident")
    for path in finished.glob("features/*/*/*.h5"):
        with h5py.File(path) as ours, h5py.File(folder / path.name, "w") as f:
            f["features"] = ours["features"][()].astype(np.float32)[None]
            f["coords"] = ours["coords"][()].astype(np.int64)
            for name in ("patch_size", "patch_size_level0"):
                f["coords"].attrs[name] = ours["coords"].attrs[name]
    return folder


@pytest.fixture
def config(tiny, theirs, finished):
    made = tiny()
    made.features, made.precomputed = "", str(theirs)
    return made


def without_slides(config, path):
    """The cohort by ids and labels alone."""
    rows = table(config.data.manifest)
    keep = ("slide_id", "label", "patient_id", "split")
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, keep, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    config.data.manifest = str(path)


def test_a_run_on_them_is_the_run_that_made_them(config, finished, tmp_path):
    without_slides(config, tmp_path / "ids.csv")
    experiment.run(config, tmp_path / "run")
    keep = ("slide_id", "p_tumor", "prediction")
    said = lambda run: [
        [line[name] for name in keep] for line in table(run / "predictions.csv")
    ]
    assert said(tmp_path / "run") == said(finished)
    with pytest.raises(ValueError, match="trained on precomputed features"):
        wsi_jax.load(tmp_path / "run")


def test_heatmaps_are_drawn_where_the_slides_are_there(config, tmp_path):
    config.train.steps = 1
    experiment.run(config, tmp_path / "run")
    assert len(list((tmp_path / "run" / "heatmaps").glob("*_top.png"))) == 1


def test_what_is_missing_or_of_another_encoder_is_refused(config, theirs, tmp_path):
    """By name; and all others go on."""
    folder = tmp_path / "features"
    folder.mkdir()
    for path in theirs.glob("*.h5"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "normal_001.h5").unlink()
    with h5py.File(folder / "tumor_001.h5", "a") as f:
        del f["features"]
        f["features"] = np.zeros((len(f["coords"]), 3), np.float32)
    without_slides(config, tmp_path / "ids.csv")
    config.precomputed, config.train.steps = str(folder), 1
    experiment.run(config, tmp_path / "run")
    found = {line["slide_id"]: line for line in table(tmp_path / "run" / "slides.csv")}
    bad = {n: s["reason"] for n, s in found.items() if s["status"] == "refused"}
    assert list(bad) == ["normal_001", "tumor_001"]
    assert "no such feature file" in bad["normal_001"]
    assert "features of 3 numbers, 8 elsewhere" in bad["tumor_001"]


def test_a_folder_that_is_not_there_is_named(config, tmp_path):
    config.precomputed = str(pathlib.Path(tmp_path, "gone"))
    with pytest.raises(RunError, match=r"--config\.precomputed=.*gone: no folder"):
        experiment.run(config, tmp_path / "run")
