"""Batches of overviews, and crops that threads read."""

import pathlib
import threading

import jax
import numpy as np
import pytest
from crop_slides import CELL, MPP, method, reader, write_slides

from wsi_jax.data.crop_reader import CropReader
from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.slides.slide import open_slide


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    return write_slides(tmp_path_factory.mktemp("slides"))


def read(reader, slides, which, yx, mask):
    n = len(slides)
    bag = reader.bag(slides, np.zeros(n, np.int32), np.ones(n, np.float32))
    return reader.read(bag.x.slide, which, yx, mask).result()


def test_a_batch_holds_overviews_cells_and_planes(slides):
    config = method()
    label, weight = np.array([1, 0], np.int32), np.array([1, 0], np.float32)
    bag = reader(config, resident=True).bag(slides[:1], label, weight)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(bag))
    slide = open_slide(slides[0].path)
    overview = slide.overview(MPP)
    h, w = overview.shape[:2]
    np.testing.assert_array_equal(bag.x.overview[0, :h, :w], overview)
    assert (bag.x.overview[0, h:] == 255).all()
    assert (bag.x.overview[1] == 255).all()
    assert bag.mask[0].sum() == len(slides[0].yx)
    assert not bag.mask[1].any()
    assert bag.x.overview.shape[1:3] == tuple(CELL * n for n in bag.mask.shape[1:])
    for plane, mpp in zip(bag.x.planes, config.mpps, strict=True):
        whole = slide.overview(mpp)
        h, w = whole.shape[:2]
        np.testing.assert_array_equal(plane[0, :h, :w], whole)
        assert (plane[0, h:] == 255).all()
        assert plane.shape[1:3] == tuple(int(32 * n / mpp) for n in bag.mask.shape[1:])


def test_crops_are_what_the_slide_has_there(slides):
    config = method()
    rng = np.random.default_rng(0)
    which, mask = rng.integers(0, 2, (2, 20)), rng.random((2, 20)) < 0.7
    yx = rng.integers(-20, 150, (2, 20, 2))
    crops = read(reader(config), slides[:2], which, yx, mask)
    for i, slide in enumerate(map(open_slide, (v.path for v in slides[:2]))):
        for j in range(20):
            wanted = slide.read(yx[i, j], 16, config.mpps[which[i, j]])
            wanted = wanted if mask[i, j] else np.zeros_like(wanted)
            np.testing.assert_array_equal(crops[i, j], wanted)


def test_a_full_memory_reads_again(slides):
    """And gives the same."""
    config = method()
    one = np.zeros(1, np.int32), np.ones(1, np.float32)
    roomy = reader(config, resident=True)
    tight = reader(config, resident=True, cache_gib=1e-4)
    for slide in (*slides, *slides):
        ours, theirs = (r.bag([slide], *one).x.planes[0] for r in (tight, roomy))
        np.testing.assert_array_equal(ours, theirs)
    assert len(tight._planes) < len(roomy._planes)


def test_what_is_damaged_is_blank_and_noted(slides, tmp_path):
    whole = pathlib.Path(slides[0].path).read_bytes()
    path = tmp_path / "damaged.tif"
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + b"\0" * 40_000 + whole[middle + 40_000 :])
    slide = StreamedSlide(str(path), None, slides[0].yx, CELL, MPP, threads=2)
    which = np.zeros((1, 64), int)
    yx = np.stack(np.meshgrid(np.arange(8) * 40, np.arange(8) * 40), -1)
    yx = yx.reshape(1, 64, 2)
    mask = np.ones((1, 64), bool)
    crops = read(reader(method()), [slide], which, yx, mask)
    assert slide.n_unreadable > 0
    assert "cannot be read" in slide.unreadable_note()
    assert (crops == 255).all((-1, -2, -3)).any()


def test_crops_that_are_being_read_do_not_hold_up_overviews(slides):
    """Nor the other way round, where there is room for neither."""
    kwargs = {"resident": False, "threads": 1, "cache_gib": 0.0, "all_tiles": True}
    tight = CropReader(method().reads(), 16, **kwargs)
    which, mask = np.zeros((3, 50), int), np.ones((3, 50), bool)
    bag = lambda: tight.bag(slides, np.zeros(3, np.int32), np.ones(3, np.float32))
    crops = tight.read(bag().x.slide, which, np.zeros((3, 50, 2), int), mask)
    made = []
    thread = threading.Thread(target=lambda: made.append(bag()), daemon=True)
    thread.start()
    thread.join(60)  # for ever, where they wait for each other
    assert made
    assert crops.result().any()


def test_the_same_crops_are_read_once(slides):
    """Where there is room, by themselves or by rows; equal the second time."""
    config, slide = method(), slides[0]
    which, mask = np.zeros((1, 9), int), np.ones((1, 9), bool)
    yx = np.stack(np.mgrid[:3, :3], -1).reshape(1, 9, 2) * 16
    for all_tiles, strips in ((True, 3), (False, 9)):
        for gib, times in ((1.0, 1), (0.0, 2)):
            kwargs = {"overviews": False, "all_tiles": all_tiles, "cache_gib": gib}
            ours = reader(config, **kwargs)
            before = slide.n_read
            both = [read(ours, [slide], which, yx, mask) for _ in range(2)]
            np.testing.assert_array_equal(*both)
            assert slide.n_read - before == 9 * times
            assert len(ours._strips) == (strips if gib else 0)


def test_a_tile_is_the_same_whatever_else_is_read(slides):
    """Read in a strip or, but for the rounding of resampling, alone."""
    config, slide = method(mpps=(1.3, 2.0)), slides[0]
    yx = np.stack(np.mgrid[:4, :12], -1).reshape(1, 48, 2) * 16
    which, mask = np.zeros((1, 48), int), np.ones((1, 48), bool)
    some = yx[..., 1] >= 7 * 16
    every, few, alone = (
        read(reader(config, all_tiles=all_tiles), [slide], which, yx, chosen)
        for all_tiles, chosen in ((True, mask), (True, some), (False, mask))
    )
    np.testing.assert_array_equal(few[some], every[some])
    assert not few[~some].any()
    assert np.abs(every.astype(int) - alone).max() <= 1
