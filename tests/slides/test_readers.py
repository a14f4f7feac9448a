"""Readers plug in by one protocol; a file of many images is no slide."""

import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_jax.slides import open_reader as readers
from wsi_jax.slides.open_reader import open_reader
from wsi_jax.slides.reader_protocol import Reader, SlideError
from wsi_jax.slides.slide import open_slide


def planes(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("shape", "options"),
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
def test_a_stack_or_channels_apart_are_refused(tmp_path, shape, options):
    """So are frames of other formats."""
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, planes(*shape), **options)
    with pytest.raises(SlideError, match=r"stack\.tif .*FlatReader: a stack of"):
        open_reader(str(path))
    first, second = (Image.fromarray(plane) for plane in planes(2, 60, 70, 3))
    first.save(tmp_path / "two.png", save_all=True, append_images=[second])
    with pytest.raises(SlideError, match="FlatReader: a stack of 2 images, not one"):
        open_reader(str(tmp_path / "two.png"))


class RemoteReader(Reader):
    """A pyramid of two levels behind a URL."""

    levels = planes(300, 400, 3), planes(150, 200, 3)
    level_shapes = tuple(level.shape[:2] for level in levels)
    background = 10, 20, 30

    def __init__(self, path):
        if not path.startswith("memory://"):
            raise ValueError("no URL of mine")
        self.properties = {"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5"}

    def read_region(self, level, y, x, h, w, out=None):
        if y == 66:
            raise OSError("connection lost")
        return self.levels[level][y : y + h, x : x + w]

    def close(self):
        pass


def test_a_reader_of_another_format_or_of_urls_plugs_in(monkeypatch):
    """Everything else is the slide's: mpp, edges, several tiles, errors, pickling."""
    slide = open_slide("memory://bucket/a.svs", open_reader=RemoteReader)
    assert (slide.slide_id, slide.mpp, slide.mpp_source) == ("a", 0.5, "property")
    slide = pickle.loads(pickle.dumps(slide))
    fine, coarse = RemoteReader.levels
    np.testing.assert_array_equal(slide.read((5, 7), 50, 0.5), fine[5:55, 7:57])
    tile = np.empty((64, 64, 3), np.uint8)
    assert slide.read_tiles(np.array([(9, 8)]), 1.0, [tile]) == [None]
    np.testing.assert_array_equal(tile, coarse[9:73, 8:72])
    assert (slide.read((-4, 0), 4, 0.5) == RemoteReader.background).all()
    with pytest.raises(SlideError, match=r"a: level 0 .*connection lost"):
        slide.read((66, 0), 4, 0.5)
    with pytest.raises(SlideError, match=r"no URL of mine.*https://x/a\.svs"):
        open_slide("https://x/a.svs", open_reader=RemoteReader)
    with pytest.raises(SlideError, match=r"https://x/a\.svs cannot be opened"):
        open_slide("https://x/a.svs")
    monkeypatch.setattr(readers, "READERS", (*readers.READERS, RemoteReader))
    assert open_slide("memory://bucket/a.svs").shape == (300, 400)
