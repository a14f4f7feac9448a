"""Features that another tool made: no slide is read, and the same is learnt."""

import csv
import pathlib

import h5py
import numpy as np
import pytest
from PIL import Image

import wsi_jax
from wsi_jax.data.cohort import Row
from wsi_jax.run import extract as extraction
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
    with h5py.File(folder / "normal_002.h5", "a") as f:
        f["features"][0, 1, 1] = np.nan
    without_slides(config, tmp_path / "ids.csv")
    config.precomputed, config.train.steps = str(folder), 1
    config.max_refused = 0.5
    experiment.run(config, tmp_path / "run")
    found = {line["slide_id"]: line for line in table(tmp_path / "run" / "slides.csv")}
    bad = {n: s["reason"] for n, s in found.items() if s["status"] == "refused"}
    assert list(bad) == ["normal_001", "normal_002", "tumor_001"]
    assert "1 of 18 tiles have features that are no finite" in bad["normal_002"]
    assert "no such feature file" in bad["normal_001"]
    assert "features of 3 numbers, 8 elsewhere" in bad["tumor_001"]


def test_what_cannot_be_learnt_from_is_refused_before_anything_is(tmp_path):
    """Whatever is wrong with a file, and the others are used."""

    def changed(f, name, at, value):
        values = f[name][()]
        values[at] = value
        del f[name]
        f[name] = values

    faults = {
        "nan": lambda f: changed(f, "features", (2, 1), np.nan),
        "inf": lambda f: changed(f, "features", (2, 1), 1e30),
        "place": lambda f: changed(f, "coords", (2, 1), np.nan),
        "empty": lambda f: [f.pop(k) and f.create_dataset(k, (0, 2)) for k in list(f)],
        "link": lambda f: f.move("features", "x") or f.update(
            features=h5py.SoftLink("x")
        ),
        "good": lambda f: None,
    }  # fmt: skip
    for name, fault in faults.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as f:
            f["features"], f["coords"] = np.ones((5, 2)), np.zeros((5, 2))
            fault(f)
    rows = [Row(name, "", "a", name, "") for name in faults]
    lines = {line["slide_id"]: line for line in extraction.adopt(rows, tmp_path)}
    assert lines["good"]["status"] == "precomputed"
    assert lines["good"]["tiles"] == 5
    reasons = {name: line["reason"] for name, line in lines.items()}
    for name, reason in {
        "nan": "1 of 5 tiles have features that are no finite",
        "inf": "1 of 5 tiles have features that are no finite",
        "place": "1 of 5 tiles have coords that are no pixel",
        "empty": "a bag without tiles",
        "link": "features is a link",
    }.items():
        assert lines[name]["status"] == "refused"
        assert reasons[name].startswith(f"{name}: ")
        assert reason in reasons[name]


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
