"""A cohort's tiles, written once and taken up by a training."""

import csv

import numpy as np
import pytest
from PIL import Image

from experiments.configs.pretrain import prepare_tiles, prepared
from experiments.pretraining.prepare_tiles import prepare as write
from experiments.pretraining.prepared_tiles import PreparedTiles
from experiments.pretraining.pretrain_config import PretrainPrepared
from wsi_jax.data.cohort import CohortError
from wsi_jax.data.tile_batches import Reading
from wsi_jax.run.run_folder import RunError, read_csv
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.tissue import Tissue


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The config for six slides that are all tissue, and one that is gone."""
    folder = tmp_path_factory.mktemp("slides")
    lines = [("path", "label", "split", "mpp")]
    for i in range(6):
        rng = np.random.default_rng(i)
        pixels = rng.integers((150, 60, 120), (220, 120, 200), (256, 256, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"s{i}.png")
        split = ("train", "val", "test")[i // 2]
        lines.append((f"s{i}.png", ("normal", "tumor")[i % 2], split, 1.0))
    lines.append(("gone.png", "tumor", "train", 1.0))
    with open(folder / "cohort.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    made = prepare_tiles.get_config()
    made.data.manifest = str(folder / "cohort.csv")
    made.out = str(tmp_path_factory.mktemp("out") / "prepared")
    made.grid, made.tissue = Grid(mpp=2.0, size_px=32), Tissue(mpp=8.0)
    made.reading = Reading(threads=2)
    return made


def test_a_cohort_is_written_once_and_trained_on(config):
    out = write(config)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.array_record*")}
    assert written
    lines = read_csv(out / "slides.csv")
    assert [line["status"] for line in lines] == ["written"] * 6 + ["refused"]
    assert "no file" in lines[-1]["reason"]
    assert len(PreparedTiles(out, "test")) == sum(int(s["tiles"]) for s in lines[4:])

    sets = PretrainPrepared(tiles=str(out), mpp=2.0, most=20).sets()
    assert sets.classes == ("normal", "tumor")
    assert sets.train.pixels.shape == (20, 32, 32, 3)
    assert sets.training_ids == ("s0", "s1", "s2", "s3")
    assert {*sets.test.cluster} == {"s4", "s5"}

    write(config)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    config.grid.mpp = 1.0
    with pytest.raises(CohortError, match="holds tiles of other slides or settings"):
        write(config)


def test_what_is_missing_is_named():
    with pytest.raises(RunError, match=r"add --config.out=FOLDER"):
        write(prepare_tiles.get_config())
    with pytest.raises(RunError, match=r"add --config.tiles=FOLDER"):
        prepared.get_config().sets()
