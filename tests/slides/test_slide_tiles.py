"""Tissue and tiles of a slide by one call."""

import io

import numpy as np
import pytest
from PIL import Image
from slides.tiffs import halved, write_tiff

from wsi_jax.data.cohort import Row
from wsi_jax.run.tiling import Tiling, tile_slide
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.slide import SlideError, open_slide
from wsi_jax.slides.slide_tiles import READ, tile


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Purple tissue with grain on white glass, 0.25 um/px."""
    rng = np.random.default_rng(0)
    image = np.full((1600, 2000, 3), 245, np.uint8)
    image[300:1300, 400:1700] = (170, 90, 160)
    image[300:1300, 400:1700] += rng.integers(0, 20, (1000, 1300, 3), np.uint8)
    path = tmp_path_factory.mktemp("tiles") / "slide.tif"
    return write_tiff(path, [image, halved(image)])


def test_tiles_are_those_of_a_run(slide):
    tiles = tile(slide, mpp=0.5, size_px=64)
    of_a_run = tile_slide(
        Row("slide", str(slide), "", "slide", ""),
        Tiling(grid=Grid(mpp=0.5, size_px=64)),
    )
    np.testing.assert_array_equal(tiles.yx, of_a_run.yx)
    np.testing.assert_array_equal(tiles.yx_level0, 2 * tiles.yx)
    assert tiles.mask.shape == tiles.slide.shape_at(tiles.mask_mpp)
    assert len(tiles) > 2 * READ


def test_iterating_reads_the_pixels(slide):
    tiles = tile(open_slide(slide), mpp=0.4, size_px=100, overlap_px=20)
    pairs = list(tiles)
    assert len(pairs) == len(tiles)
    for i in (0, 40, len(tiles) - 1):
        yx, pixels = pairs[i]
        np.testing.assert_array_equal(yx, tiles.yx[i])
        np.testing.assert_array_equal(pixels, tiles.slide.read(yx, 100, 0.4))
        np.testing.assert_array_equal(tiles[i].pixels, pixels)


def test_what_a_notebook_shows(slide):
    tiles = tile(slide, mpp=0.5, size_px=128)
    assert repr(tiles).startswith(f"SlideTiles(slide: {len(tiles)} tiles of 128 px at")
    with Image.open(io.BytesIO(tiles._repr_png_())) as picture:
        assert picture.size == (400, 320)


def test_a_slide_too_coarse_is_refused(slide):
    with pytest.raises(SlideError, match=r"upsampling 2\.50x.* Set mpp to "):
        tile(slide, mpp=0.1)


@pytest.mark.parametrize(("name", "value"), [("mpp", 0.0), ("size_px", 0)])
def test_an_argument_out_of_bounds_is_named(slide, name, value):
    with pytest.raises(ValueError, match=f"^{name}={value}: "):
        tile(slide, **{name: value})
