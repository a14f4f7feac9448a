"""Half the resolution is what Pillow's antialiased bilinear filter makes of it."""

import numpy as np
import pytest
from PIL import Image
from slides.tiffs import MPP, picture, write_tiff

from wsi_jax.slides.resampling import halve
from wsi_jax.slides.slide import open_slide


def by_pillow(around, y, x, h, w):
    """Halves [y, y + 2h) x [x, x + 2w) of an image that has more around it."""
    box = x, y, x + 2 * w, y + 2 * h
    image = Image.fromarray(around)
    return np.array(image.resize((w, h), Image.Resampling.BILINEAR, box=box))


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (64, 40), (65, 131)])
@pytest.mark.parametrize("values", [2, 256])
def test_every_pixel_is_pillows(size, values):
    h, w = size
    shape, rng = (2 * h + 4, 2 * w + 4, 3), np.random.default_rng(h)
    around = rng.integers(0, values, shape).astype(np.uint8) * (255 // (values - 1))
    out = np.zeros((h, w, 3), np.uint8)
    assert halve(around[1:-1, 1:-1].copy(), out) is out
    np.testing.assert_array_equal(out, by_pillow(around, 2, 2, h, w))


def test_all_reads_of_a_slide_are_cut_from_one_plane(tmp_path):
    image = picture(200, 300)
    slide = open_slide(write_tiff(tmp_path / "a.tif", [image], compression="zlib"))
    around = np.pad(image, [(2, 2), (2, 2), (0, 0)], mode="edge")
    plane = by_pillow(around, 2, 2, 100, 150)
    for y, x, h, w in ((0, 0, 100, 150), (0, 7, 64, 143), (3, 2, 97, 5)):
        read = slide.read((y, x), (h, w), 2 * MPP)
        np.testing.assert_array_equal(read, plane[y : y + h, x : x + w])
