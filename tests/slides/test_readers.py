"""A file of many images is no slide: its first one must not pass for it."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_jax.slides.readers import FlatReader, SlideError, open_reader


def planes(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("shape", "how"),
    [
        ((3, 60, 70), {"photometric": "minisblack"}),
        ((2, 60, 70), {"photometric": "minisblack", "metadata": None}),
        ((5, 60, 70, 3), {"photometric": "rgb"}),
        ((3, 60, 70), {"imagej": True}),
        ((3, 60, 70), {"ome": True}),
        # One directory; the description alone tells of the others.
        ((5, 60, 70, 3), {"photometric": "rgb", "truncate": True}),
        ((3, 60, 70), {"imagej": True, "truncate": True}),
    ],
)
def test_a_stack_or_channels_apart_are_refused(tmp_path, shape, how):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, planes(*shape), **how)
    with pytest.raises(SlideError, match=r"stack\.tif .*FlatReader: a stack of"):
        open_reader(str(path))


def test_so_are_frames_of_other_formats(tmp_path):
    first, second = (Image.fromarray(plane) for plane in planes(2, 60, 70, 3))
    first.save(tmp_path / "two.png", save_all=True, append_images=[second])
    with pytest.raises(SlideError, match="FlatReader: a stack of 2 images, not one"):
        open_reader(str(tmp_path / "two.png"))


def test_colours_in_planes_are_one_image(tmp_path):
    path, image = tmp_path / "separate.tif", planes(3, 60, 70)
    tifffile.imwrite(path, image, photometric="rgb", planarconfig="separate")
    reader = open_reader(str(path))
    assert isinstance(reader, FlatReader)
    seen = reader.read(0, 0, 0, 60, 70)
    np.testing.assert_array_equal(seen, image.transpose(1, 2, 0))
    reader.close()
