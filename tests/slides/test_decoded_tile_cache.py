"""Decoded tiles are kept for a while; neighbours that are read together share them."""

import concurrent.futures

import numpy as np
import pytest
from slides.tiffs import JPEG, MPP, halved, picture, write_tiff

from wsi_jax.slides import decoded_tile_cache
from wsi_jax.slides.decoded_tile_cache import TileCache
from wsi_jax.slides.slide import open_slide


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("jpeg") / "a.tif"
    return write_tiff(path, [picture(451, 603)], **JPEG)


def test_threads_read_the_same_pixels_whatever_is_kept(path, monkeypatch):
    small = TileCache(3 * 64 * 64 * 3)
    monkeypatch.setattr(decoded_tile_cache, "tiles", small)
    corners = np.random.default_rng(0).integers(0, 380, (300, 2))
    slide = open_slide(path)
    alone = [slide.read(yx, 70, MPP) for yx in corners]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda yx: slide.read(yx, 70, MPP), corners))
    np.testing.assert_array_equal(alone, together)
    slide.read((5, 5), 64, MPP)
    assert small.bytes <= small.limit_bytes


def test_each_tile_is_decoded_once_and_its_memory_used_again(monkeypatch):
    tiles, decoded = TileCache(4 * 300), []

    def decode(index, out):
        decoded.append(index)
        out[:] = index

    def read(owner, index):
        with tiles.tile(owner, index, (10, 10, 3), decode) as pixels:
            assert (pixels == index).all()
            return pixels.ctypes.data

    first = [read("a", i) for i in (1, 2, 1, 3, 2, 4)]
    assert decoded == [1, 2, 3, 4]
    read("a", 1)
    assert read("a", 5) == first[3]  # 3 is what was used longest ago
    assert [read("a", i) for i in (1, 4)] == [first[0], first[5]]
    assert decoded == [1, 2, 3, 4, 5]
    tiles.drop("a")
    assert {read("b", i) for i in (1, 2, 3, 4)} == set(first)
    assert decoded[5:] == [1, 2, 3, 4]
    assert tiles.bytes == tiles.limit_bytes


def test_what_is_being_copied_is_not_decoded_over():
    tiles, shape = TileCache(300), (10, 10, 3)
    decoded = []

    def read(index):
        with tiles.tile("a", index, shape, lambda i, out: out.fill(i)) as pixels:
            return pixels.copy()

    class Place(np.ndarray):
        def __setitem__(self, where, pixels):
            read(2)  # as another thread might
            decoded.append(pixels.copy())

    read(1)
    assert tiles.copy("a", 1, np.empty(shape, np.uint8).view(Place))
    assert (decoded[0] == 1).all()
    out = np.empty(shape, np.uint8)
    assert tiles.copy("a", 2, out)
    assert (out == 2).all()
    assert not tiles.copy("a", 3, out)


def test_a_tile_that_failed_is_tried_again():
    tiles, decoded = TileCache(1000), []

    def decode(index, out):
        decoded.append(index)
        if len(decoded) == 1:
            raise ValueError("once")
        out[:] = 7

    with pytest.raises(ValueError, match="once"), tiles.tile("a", 0, (4, 4, 3), decode):
        pass
    with tiles.tile("a", 0, (4, 4, 3), decode) as pixels:
        assert (pixels == 7).all()
    assert decoded == [0, 0]


def test_a_parents_region_serves_its_children(path, decodes, monkeypatch):
    """And of tiles that are read together each of the file's is decoded once."""
    slide = open_slide(path)
    slide.read((0, 0), 128, 2 * MPP)
    n = len(decodes)
    assert n >= 16
    for yx in ((0, 0), (0, 128), (128, 0), (128, 128)):
        slide.read(yx, 128, MPP)
    assert len(decodes) == n
    slide.close()
    slide.read((0, 0), 64, MPP)
    assert len(decodes) > n
    monkeypatch.setattr(decoded_tile_cache, "tiles", TileCache(0))
    for first, n in ((0, 3), (30, 8)):
        yx = np.array([(first, x + first) for x in (128, 0, 64)])
        decodes.clear()
        slide.read_tiles(yx, MPP, list(np.empty((3, 64, 64, 3), np.uint8)))
        assert len(decodes) == n


def test_tiles_read_together_or_to_a_given_place_are_those_read_alone(path):
    slide = open_slide(path)
    for yx, mpp in (((3, 5), MPP), ((-9, 40), MPP), ((3.5, 5), 0.3), ((0, 0), 0.5)):
        out = np.zeros((60, 70, 3), np.uint8)
        assert slide.read(yx, (60, 70), mpp, out) is out
        np.testing.assert_array_equal(out, slide.read(yx, (60, 70), mpp))
    corners = np.random.default_rng(0).integers(-70, 620, (40, 2))
    for yx in (corners, np.clip(corners, 0, 320), np.clip(corners, 0, 320) // 64 * 64):
        for mpp in (MPP, 2 * MPP, 0.7):
            tiles = np.zeros((40, 64, 64, 3), np.uint8)
            before = slide.bytes_decoded
            assert slide.read_tiles(yx, mpp, list(tiles)) == [None] * 40
            together, before = slide.bytes_decoded - before, slide.bytes_decoded
            for at, tile in zip(yx, tiles, strict=True):
                np.testing.assert_array_equal(tile, slide.read(at, 64, mpp))
            assert slide.bytes_decoded - before == together


@pytest.mark.parametrize("level", [1, 2])
def test_together_they_end_where_slide_and_level_end(tmp_path, level):
    """A row and a column of the first level too many, of the second too few."""
    image = picture(451, 603)
    more = halved(np.pad(image, [(0, 1), (0, 1), (0, 0)], mode="edge"))
    few = halved(halved(image))
    slide = open_slide(write_tiff(tmp_path / "a.tif", [image, more, few], **JPEG))
    shape, mpp = slide.levels[level]
    ends = slide.shape_at(mpp)
    assert np.sign(np.subtract(shape, ends)).tolist() == [3 - 2 * level] * 2
    for at in np.stack(np.indices((5, 5)), -1).reshape(-1, 2) + shape - 66:
        tile = np.zeros((64, 64, 3), np.uint8)
        assert slide.read_tiles(at[None], mpp, [tile]) == [None]
        np.testing.assert_array_equal(tile, slide.read(at, 64, mpp))
