"""A folder of drawn tiles: what is in it, what is made again, and what is refused."""

import csv

import numpy as np
import pytest
from PIL import Image

from experiments.phantoms.cohort_folder import MakeCohortError
from experiments.phantoms.make_tiles import MakeTiles, make_tiles
from experiments.phantoms.textures import Kind, draw
from experiments.tile_clusters import split_of


def small(folder, **changes) -> MakeTiles:
    settings = {"styles": 6, "variants": 2, "size_px": 32, "workers": 2}
    return MakeTiles(out=str(folder), **(settings | changes))


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """A folder of tiles; left as it is found."""
    folder = tmp_path_factory.mktemp("tiles")
    assert make_tiles(small(folder)) == folder / "index.csv"
    return folder


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


def test_what_is_missing_is_made_again_and_nothing_else(tiles):
    paths = sorted(tiles.rglob("*.png"))
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in paths}
    gone = tiles / index(tiles)[-1]["file"]  # the last of its style: the mark of it
    gone.unlink()
    make_tiles(small(tiles, workers=1))
    assert {p: p.read_bytes() for p in paths} == {p: b for p, (b, _) in before.items()}
    style = gone.stem.split("_")[0]
    again = {p for p in paths if p.stat().st_mtime_ns != before[p][1]}
    assert again == set(gone.parent.glob(f"{style}_*.png"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": ""}, r"--config\.out=FOLDER"),
        ({"variants": 3}, "holds .*with variants=2, asked for is 3"),
        ({"mpp": 0.0}, r"--config\.mpp=0"),
        ({"kinds": ("normal", "moon")}, r"--config\.kinds=.*'moon'\): some of normal"),
        ({"kinds": ()}, r"--config\.kinds=\(\): none"),
    ],
)
def test_what_cannot_be_made_is_refused_by_its_flag(tiles, changes, message):
    config = small(tiles)
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        make_tiles(config)


def test_too_few_styles_are_refused(tmp_path):
    """Where all of them are a training slide's, there is nothing to draw."""
    assert {split_of(f"tumor:{style}") for style in range(2)} == {"train"}
    with pytest.raises(MakeCohortError, match=r"--config\.styles=2"):
        make_tiles(small(tmp_path / "few", kinds=("tumor",), styles=2))
    assert not (tmp_path / "few").exists()
