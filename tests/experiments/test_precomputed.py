"""Features that another tool made: no slide is read, and the same is learnt."""

import pathlib

import h5py
import numpy as np
import pytest
from PIL import Image
from run_files import table, write_table

import wsi_jax
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.inputs.features import tile_size
from wsi_jax.slides.slide import SlideError, open_slide


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


def with_one_slide(config, path):
    """The cohort by ids and labels; of one test slide the file is there, too."""
    rows = table(config.data.manifest)
    folder = pathlib.Path(config.data.manifest).parent
    keep = ("slide_id", "label", "patient_id", "split", "path", "mpp")
    for row in rows:
        kept = row["slide_id"] == "test_001"
        row["path"] = str(folder / row["path"]) if kept else ""
    config.data.manifest = str(write_table(path, rows, keep))


def test_a_run_on_them_is_the_run_that_made_them(config, finished, tmp_path):
    """And what can be drawn is."""
    with_one_slide(config, tmp_path / "ids.csv")
    experiment.run(config, tmp_path / "run")
    keep = ("slide_id", "p_tumor", "prediction")
    predictions = lambda run: [
        [line[name] for name in keep] for line in table(run / "predictions.csv")
    ]
    assert predictions(tmp_path / "run") == predictions(finished)
    (drawn,) = (tmp_path / "run" / "heatmaps").glob("*_top.png")
    assert drawn.name == "test_001_top.png"
    with pytest.raises(ValueError, match="trained on precomputed features"):
        wsi_jax.load(tmp_path / "run")


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
