"""A slide as streaming methods read it: any turn, any tile, and never whole."""

import jax.numpy as jnp
import numpy as np
import pytest
import tifffile

from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.ops.augment import rotate_flip
from wsi_jax.slides.pyramid_writer import write_pyramid
from wsi_jax.slides.slide import SlideError, open_slide, shape_at

MPP, CELL, TILE = 0.5, 32, (48, 64)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A slide of 160 x 192 px: whole cells, so that every turn has the same ones."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 12, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    path = tmp_path_factory.mktemp("slides") / "slide.tif"
    write_pyramid(path, pixels, MPP, quality=90)
    return path


@pytest.fixture
def view(path):
    yx = CELL * np.array([[0, 0], [1, 4], [4, 5], [3, 0]], np.int32)
    return StreamedSlide(str(path), None, yx, CELL, MPP, threads=2)


def turned(a, which):
    """The rule is the device's, which takes squares only."""
    side = max(a.shape[:2])
    wide = np.full((side, side, a.shape[2]), 7, a.dtype)
    wide[: a.shape[0], : a.shape[1]] = a
    there = np.zeros((side, side, 1), bool)
    there[: a.shape[0], : a.shape[1]] = True
    both = [
        np.asarray(rotate_flip(jnp.asarray(x)[None], jnp.array([which]))[0])
        for x in (wide, there)
    ]
    h, w = a.shape[:2][::-1] if which & 1 else a.shape[:2]
    return both[0][both[1][..., 0]].reshape(h, w, -1)


@pytest.mark.parametrize("which", range(8))
def test_a_turned_slide_is_the_slide_turned(path, view, which):
    whole = turned(open_slide(path).overview(MPP), which)
    assert view.rotated_shape(which) == whole.shape[:2]
    count = [-(-n // px) for n, px in zip(whole.shape[:2], TILE, strict=True)]
    order = [tuple(map(int, at)) for at in np.ndindex(*count)][::-1]
    tiles = list(view.tiles(order, TILE, which))
    assert len(tiles) == len(order)
    for (r, c), tile in zip(order, tiles, strict=True):
        wanted = whole[r * 48 : (r + 1) * 48, c * 64 : (c + 1) * 64]
        assert tile.shape == (1, *TILE, 3)
        inside = tile[0, : wanted.shape[0], : wanted.shape[1]]
        np.testing.assert_array_equal(inside, wanted)
    tissue = turned(view.tissue()[..., None], which)[..., 0]
    np.testing.assert_array_equal(view.tissue(which), tissue)


def test_cells_of_a_ragged_slide_have_tissue_where_their_centres_do(path):
    """Turned, the cells begin at the other end; none is lost but at the rim."""
    yx = CELL * np.argwhere(np.ones((5, 4), bool)).astype(np.int32)
    view = StreamedSlide(str(path), None, yx, CELL, 0.55, threads=1)
    assert view.shape == (145, 175)
    assert view.tissue().shape == (5, 6)
    # x is reversed: the centre of cell 0 is pixel 158, that of cell 1 pixel 126.
    mirrored = view.tissue(4)[0]
    np.testing.assert_array_equal(mirrored, [False, True, True, True, True, True])


def test_a_tile_that_cannot_be_read_is_blank_and_reported(tmp_path):
    path = tmp_path / "hurt.tif"
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    tifffile.imwrite(path, image, tile=(64, 64), compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[5]
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 64)
    view = StreamedSlide(
        str(path), MPP, np.zeros((1, 2), np.int32), CELL, MPP, threads=2
    )
    whole, hurt = view.tiles([(0, 0), (1, 1)], (64, 64))
    np.testing.assert_array_equal(whole[0], image[:64, :64])
    assert (hurt == 255).all()
    assert view.unreadable_note().startswith(
        "1 of 2 reads of tiles failed, taken as blank: hurt: level"
    )


def test_a_slide_of_known_shape_is_opened_when_it_is_read(path, view):
    """So that a process holds the slides of others without their files."""
    absent = StreamedSlide("gone.tif", None, view.yx, CELL, MPP, shape=view.shape)
    np.testing.assert_array_equal(absent.tissue(3), view.tissue(3))
    assert absent.bytes_decoded == 0
    absent.close()
    with pytest.raises(SlideError, match="gone"):
        next(absent.tiles([(0, 0)], TILE))
    slide = open_slide(path)
    assert shape_at(slide.shape, slide.mpp, 0.7) == slide.shape_at(0.7)
