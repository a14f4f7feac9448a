"""Tiles lie on tissue, inside the slide; children cover their parent exactly."""

import numpy as np
import pytest

from wsi_jax.slides.grid import Grid, children, level0, tile_grid

EVERY = {"mask": None, "mask_mpp": 8.0}


@pytest.mark.parametrize("overlap_px", [0, 5, 63])
@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.37])
def test_tiles_cover_the_slide_and_never_leave_it(mpp, overlap_px):
    grid = Grid(mpp=mpp, size_px=64, overlap_px=overlap_px)
    shape, slide_mpp = (401, 777), 0.25
    yx = tile_grid(shape, slide_mpp, **EVERY, grid=grid)
    end = np.array(shape) * slide_mpp / mpp
    stride = 64 - overlap_px
    assert yx.dtype == np.int32
    assert (yx >= 0).all()
    assert (yx + 64 <= end).all()
    assert (yx.max(0) + 64 + stride > end).all()
    assert len(np.unique(yx, axis=0)) == len(yx) == np.prod((end - 64) // stride + 1)
    np.testing.assert_array_equal(yx, yx[np.lexsort(yx.T[::-1])])
    assert (yx % stride == 0).all()


def test_a_whole_number_of_tiles_loses_none_and_less_than_one_is_none():
    """0.1 um/px has no exact binary: rounding must not cost the last row."""
    grid = Grid(mpp=0.3, size_px=7)
    for n in range(1, 60):
        shape = (3 * 7 * n, 3 * 7)
        assert len(tile_grid(shape, 0.1, **EVERY, grid=grid)) == n
    yx = tile_grid((100, 500), 0.5, **EVERY, grid=Grid(size_px=101))
    assert (yx.shape, yx.dtype) == ((0, 2), np.int32)


@pytest.mark.parametrize(
    ("slide_mpp", "mask_mpp", "mpp"),
    [(1.0, 8.0, 1.0), (1.0, 7.0, 3.0), (2.0, 6.0, 4.0)],
)
def test_tissue_fraction_is_the_exact_area(slide_mpp, mask_mpp, mpp):
    """Against counting on a raster of 1 um, where every edge is whole."""
    mask = np.random.default_rng(0).random((23, 31)) < 0.5
    fine = np.kron(mask, np.ones((int(mask_mpp),) * 2, bool))
    shape = tuple(int(n // slide_mpp) for n in fine.shape)
    grid = Grid(mpp=mpp, size_px=9, overlap_px=4, min_tissue=0.55)
    kept = {
        tuple(yx) for yx in tile_grid(shape, slide_mpp, mask, mask_mpp, grid).tolist()
    }
    um = int(mpp)
    side = 9 * um
    corners = tile_grid(shape, slide_mpp, None, mask_mpp, grid).tolist()
    expected = {
        (y, x)
        for y, x in corners
        if fine[y * um : y * um + side, x * um : x * um + side].mean() >= 0.55
    }
    assert 0 < len(expected) < len(corners)
    assert kept == expected


def test_an_all_tissue_mask_keeps_all_and_an_empty_one_none():
    grid = Grid(mpp=0.5, size_px=17, min_tissue=1.0)
    # The mask ends beyond the last row of tiles, and within the last column.
    shape = (1003, 2007)
    every = tile_grid(shape, 0.5, **EVERY, grid=grid)
    full = np.ones((round(1003 / 16), round(2007 / 16)), bool)
    np.testing.assert_array_equal(tile_grid(shape, 0.5, full, 8.0, grid), every)
    assert not len(tile_grid(shape, 0.5, ~full, 8.0, grid))
    grid.min_tissue = 0.0
    np.testing.assert_array_equal(tile_grid(shape, 0.5, ~full, 8.0, grid), every)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_children_cover_their_parent_exactly(k):
    yx, size = np.array([[0, 0], [7, 21]], np.int32), 5
    below = children(yx, size, k)
    assert below.dtype == np.int32
    for parent, family in zip(yx, below.reshape(2, k * k, 2), strict=True):
        cover = np.zeros((60 * k, 60 * k), int)
        for y, x in family:
            cover[y : y + size, x : x + size] += 1
        truth = np.zeros_like(cover)
        (y, x), side = parent * k, size * k
        truth[y : y + side, x : x + side] = 1
        np.testing.assert_array_equal(cover, truth)
        np.testing.assert_array_equal(family, family[np.lexsort(family.T[::-1])])
    far = np.array([[3, 5], [2**31 - 1, 0]], np.int32)  # level 0 does not overflow
    np.testing.assert_array_equal(level0(far, 0.5, 0.23)[0], [7, 11])
    assert level0(far, 0.5, 0.25)[1].tolist() == [2 * (2**31 - 1), 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("overlap_px", 256), ("overlap_px", 300), ("overlap_px", -1)),
        *(("size_px", 0), ("mpp", 0.0), ("min_tissue", 1.5)),
    ],
)
def test_wrong_settings_name_their_flag(name, value):
    with pytest.raises(ValueError, match=rf"--config\.grid\.{name}"):
        tile_grid((999, 999), 0.5, **EVERY, grid=Grid(**{name: value}))
