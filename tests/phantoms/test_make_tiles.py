"""A folder of drawn tiles: what is in it, what is made again, and what is refused."""

import csv

import numpy as np
import pytest
from PIL import Image

from experiments.phantoms.make_tiles import make_tiles
from experiments.phantoms.textures import Kind, draw
from experiments.tile_clusters import split_of


@pytest.fixture
def tiles(made):
    return made(make_tiles).folder


def index(folder):
    with open(folder / "index.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_index_names_every_tile_its_class_and_its_style(tiles):
    lines = index(tiles)
    named = {line["file"] for line in lines}
    assert len(named) == len(lines)
    assert named == {str(p.relative_to(tiles)) for p in tiles.rglob("*.png")}
    for line in lines:
        kind, style = line["cluster"].split(":")
        assert line["class"] == kind
        assert line["file"].startswith(f"{kind}/{int(style):04}_")
    one = lines[0]
    kind, style = one["cluster"].split(":")
    wanted = draw(Kind(kind), int(style), 2, 32, 1.0)[0]
    np.testing.assert_array_equal(np.asarray(Image.open(tiles / one["file"])), wanted)


def test_no_style_of_a_training_slide_is_drawn(tiles):
    styles = {f"{kind}:{i}" for kind in ("normal", "tumor") for i in range(6)}
    drawn = {line["cluster"] for line in index(tiles)}
    assert drawn == {name for name in styles if split_of(name) != "train"}
    assert 0 < len(drawn) < len(styles)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mpp": 0.0}, r"--config\.mpp=0"),
        ({"kinds": ("normal", "moon")}, r"--config\.kinds=.*'moon'\): some of normal"),
        ({"kinds": ()}, r"--config\.kinds=\(\): none"),
        # Both styles are a training slide's.
        ({"kinds": ("tumor",), "styles": 2}, r"--config\.styles=2"),
    ],
)
def test_what_cannot_be_made_is_refused_by_its_flag(made, tmp_path, changes, message):
    config = made(make_tiles).config(out=str(tmp_path / "none"), **changes)
    with pytest.raises(ValueError, match=message):
        make_tiles(config)
    assert not (tmp_path / "none").exists()
