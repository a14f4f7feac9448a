"""A folder of tiles as people have it: any CSV, and each bad tile by its name."""

import numpy as np
import pytest
from PIL import Image

from experiments.phantoms.texture_sources import Folder, SourceError
from experiments.tile_clusters import split_of
from wsi_jax.data.csv_table import CohortError

CLUSTER = next(name for name in "abcdefgh" if split_of(name) == "train")


def write_index(folder, separator=",", encoding="utf-8", names=("0", "1", "2", "3")):
    lines = [("file", "class", "cluster"), *((f"{n}.png", "x", CLUSTER) for n in names)]
    text = "".join(separator.join(line) + "\n" for line in lines)
    (folder / "index.csv").write_text(text, encoding=encoding)


@pytest.fixture
def folder(tmp_path):
    write_index(tmp_path)
    for i in range(4):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def draw(folder):
    return Folder(folder, ("x",)).draw("x", "train", 9, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("separator", "encoding"), [(",", "utf-8"), (";", "utf-8-sig")]
)
def test_an_index_as_spreadsheets_save_it(folder, separator, encoding):
    write_index(folder, separator, encoding)
    tiles = draw(folder)
    assert sorted(tiles.pixels[:, 0, 0, 0]) == [0, 1, 2, 3]
    assert tiles.clusters == (CLUSTER,)


def test_an_index_class_or_column_that_is_missing_is_named(folder):
    with pytest.raises(SourceError, match="no tile of class 'b', but of"):
        Folder(folder, ("x", "b"))
    with pytest.raises(SourceError, match="lists the tiles: file,class,cluster"):
        Folder(folder / "nowhere", ("x",))
    (folder / "index.csv").write_text("file,kind,cluster\n0.png,x,a\n")
    with pytest.raises(CohortError, match=r"index\.csv: no column 'class' among"):
        draw(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"no picture"), r"2\.png: cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), r"2\.png: cannot be"),
        (lambda path: path.unlink(), r"2\.png: cannot be read .*No such file"),
        (
            lambda path: Image.new("RGB", (6, 6)).save(path),
            r"2\.png: 6x6 px; tiles are square and alike .8x8 px.; mend it, or take",
        ),
    ],
)
def test_a_tile_that_cannot_serve_is_named(folder, spoil, message):
    spoil(folder / "2.png")
    with pytest.raises(SourceError, match=message):
        draw(folder)


def test_tiles_are_square(folder):
    for i in range(4):
        Image.new("RGB", (8, 6)).save(folder / f"{i}.png")
    with pytest.raises(SourceError, match=r"\d\.png: 8x6 px; tiles are square"):
        draw(folder)
