"""Tissue tiles as records: the slide's own pixels, each once, whole or not there."""

import numpy as np
import pytest
from PIL import Image

from experiments.pretraining.prepared_tiles import (
    Encoding,
    PreparedTiles,
    is_prepared,
    load_prepared,
    write_tiles,
)
from wsi_jax.data.cohort import CohortError, Row
from wsi_jax.data.tile_batches import Reading
from wsi_jax.run.tiling import TiledSlide
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.slide import open_slide

MPP, GRID = 0.5, Grid(mpp=1.0, size_px=16)
READING = Reading(threads=2)
SPLITS = {"a": "train", "b": "train", "c": "val", "d": "test"}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Four slides of 3 x 5 tiles at twice their own mpp; of one all but a tile."""
    folder, made = tmp_path_factory.mktemp("slides"), []
    yx = np.stack(np.indices((3, 5)), -1).reshape(-1, 2) * 16
    for i, (name, split) in enumerate(SPLITS.items()):
        pixels = np.random.default_rng(i).integers(0, 255, (96, 160, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        label = ("normal", "tumor")[i % 2]
        row = Row(name, str(folder / f"{name}.png"), label, f"p{i}", split, MPP)
        made.append(TiledSlide(row, yx[1:] if name == "b" else yx, MPP))
    return made


def write(folder, slides, **options):
    given = {"encoding": Encoding.png, "made_with": "this", "reading": READING}
    given |= {"advance": lambda n: None}
    return write_tiles(folder, slides, ("normal", "tumor"), GRID, **given | options)


@pytest.fixture(scope="module")
def folder(slides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    assert write(folder, slides) == {}
    return folder


def test_records_are_the_tiles_of_the_slides(folder, slides):
    records = []
    for split in ("train", "val", "test"):
        tiles = PreparedTiles(folder, split)
        assert (tiles.mpp, tiles.size_px) == (1.0, 16)
        for one in map(tiles.__getitem__, range(len(tiles))):
            (slide,) = [s for s in slides if s.row.slide_id == one["slide_id"]]
            assert slide.row.split == split
            assert tiles.classes[one["label"]] == slide.row.label
            assert one["patient_id"] == slide.row.patient_id
            assert one["mpp"] == 1.0
            with open_slide(slide.row.path, MPP) as image:
                want = image.read(one["yx"] * MPP, 16, 1.0)
            np.testing.assert_array_equal(one["tile"], want)
            records.append((one["slide_id"], *(one["yx"] * MPP).astype(int)))
    want = [(s.row.slide_id, *yx) for s in slides for yx in s.yx]
    assert sorted(records) == sorted(want)
    assert records != want  # shuffled


def test_written_again_they_are_the_same(folder, slides, tmp_path):
    write(tmp_path, slides)
    splits = (PreparedTiles(f, "train") for f in (folder, tmp_path))
    records = [[tiles[i] for i in range(len(tiles))] for tiles in splits]
    keys = [[(r["slide_id"], *r["yx"].tolist()) for r in part] for part in records]
    assert keys[0] == keys[1]


def test_a_folder_is_known_by_what_made_it(folder, tmp_path):
    assert is_prepared(folder, "this")
    assert not is_prepared(tmp_path, "this")
    with pytest.raises(CohortError, match=r"other slides .* --config.out"):
        is_prepared(folder, "that")
    with pytest.raises(CohortError, match="no tiles in split 'fold'"):
        PreparedTiles(folder, "fold")


def test_tiles_that_cannot_be_read_are_left_out_with_a_reason(slides, tmp_path):
    gone = Row("e", str(tmp_path / "e.png"), "tumor", "e", "val", MPP)
    reasons = write(tmp_path, [*slides, TiledSlide(gone, slides[0].yx, MPP)])
    assert list(reasons) == ["e"]
    assert len(PreparedTiles(tmp_path, "val")) == 15


def test_a_build_that_is_stopped_leaves_nothing_that_looks_whole(slides, tmp_path):
    def stop(n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, slides, advance=stop)
    (tmp_path / "tiles/incomplete.1").mkdir(parents=True)  # as a kill leaves it
    assert not is_prepared(tmp_path, "this")
    with pytest.raises(CohortError, match="no prepared tiles, or not all"):
        PreparedTiles(tmp_path, "train")
    write(tmp_path, slides)
    assert [path.name for path in (tmp_path / "tiles").iterdir()] == ["1.0.0"]
    assert len(PreparedTiles(tmp_path, "train")) == 29


def test_they_load_as_sets_of_tiles(folder):
    sets = load_prepared(folder, mpp=2.0)
    assert sets.classes == ("normal", "tumor")
    assert sets.train.pixels.shape == (29, 8, 8, 3)
    assert {*sets.train.cluster} == {"p0", "p1"}
    assert sets.training_ids == ("a", "b", "c", "p0", "p1", "p2")
    labels = dict(zip(sets.train.cluster, sets.train.label.tolist(), strict=True))
    assert labels == {"p0": 0, "p1": 1}
    assert len(load_prepared(folder, mpp=1.0, most=4).test.label) == 4
    with pytest.raises(CohortError, match=r"no detail of 0.5; raise --config.mpp"):
        load_prepared(folder, mpp=0.5)
