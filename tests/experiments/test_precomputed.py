"""Features that another tool made: no slide is read, and the same is learnt."""

import csv
import pathlib

import h5py
import numpy as np
import pytest
from PIL import Image

import wsi_jax
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.inputs.features import tile_size
from wsi_jax.slides.slide import SlideError, open_slide


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
    predictions = lambda run: [
        [line[name] for name in keep] for line in table(run / "predictions.csv")
    ]
    assert predictions(tmp_path / "run") == predictions(finished)
    with pytest.raises(ValueError, match="trained on precomputed features"):
        wsi_jax.load(tmp_path / "run")


def test_heatmaps_are_drawn_where_the_slides_are_there(config, tmp_path):
    config.train.steps = 1
    experiment.run(config, tmp_path / "run")
    assert len(list((tmp_path / "run" / "heatmaps").glob("*_top.png"))) == 1


@pytest.mark.parametrize("size", [0, -1, np.nan, np.inf, 1e308, "a", None])
def test_tiles_of_no_size_are_an_error_of_their_slide(tmp_path, size):
    Image.new("RGB", (8, 8)).save(tmp_path / "s.png")
    with open_slide(tmp_path / "s.png", 0.5) as slide:
        attrs = {"patch_size_level0": 512, "patch_size": 256}
        assert tile_size(attrs, slide) == (256, 1.0)
        for name in attrs:
            with pytest.raises(SlideError, match="s: its features do not tell how"):
                tile_size(attrs | {name: size}, slide)


def test_a_folder_that_is_not_there_is_named(config, tmp_path):
    config.precomputed = str(pathlib.Path(tmp_path, "gone"))
    with pytest.raises(ValueError, match=r"--config\.precomputed=.*gone: no folder"):
        experiment.run(config, tmp_path / "run")
