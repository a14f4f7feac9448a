"""Open files are few, shared by threads, and a bad tile spoils no other read."""

import concurrent.futures
import pickle
import subprocess
import sys

import numpy as np
import openslide
import pytest
from slides.tiffs import MPP, by_openslide, damage, picture, write_strips, write_tiff

from wsi_jax.slides import reader_pool
from wsi_jax.slides.slide import SlideError, open_slide
from wsi_jax.slides.tiff_reader import TiffReader


def write_hurt(path, **options):
    """A TIFF whose tile at (64, 64) is damaged; what OpenSlide read of it before."""
    write_tiff(path, [picture(256, 256)], **options)
    whole = by_openslide(path, 0, 0, 0, 256, 256)
    damage(path, 5, b"\xff" if options["compression"] == "deflate" else b"\0")
    return whole


@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
def test_a_damaged_tile_fails_alone(tmp_path, compression):
    whole = write_hurt(tmp_path / "hurt.tif", compression=compression)
    slide = open_slide(tmp_path / "hurt.tif")
    with pytest.raises(openslide.OpenSlideError) as theirs:
        by_openslide(slide.path, 0, 70, 70, 20, 20)
    for _ in range(2):
        with pytest.raises(
            SlideError, match=r"hurt: level 0 .*\(70, 70\).*hurt\.tif"
        ) as ours:
            slide.read((70, 70), 20, MPP)
        assert str(theirs.value) in str(ours.value)
        assert not reader_pool._entries
        read = slide.read((128, 0), 100, MPP)
        np.testing.assert_array_equal(read, whole[128:228, :100])
    yx = np.stack(np.indices((4, 4)), -1).reshape(-1, 2) * 64
    tiles = np.zeros((16, 64, 64, 3), np.uint8)
    errors = slide.read_tiles(yx, MPP, list(tiles))
    assert [i for i, error in enumerate(errors) if error] == [5]
    assert isinstance(errors[5], SlideError)
    for i in (0, 4, 6, 15):
        np.testing.assert_array_equal(tiles[i], slide.read(yx[i], 64, MPP))


def test_one_threads_damaged_tile_is_not_anothers(tmp_path):
    """OpenSlide refuses everything after its first error, to every thread."""
    whole = write_hurt(tmp_path / "hurt.tif", compression="deflate")
    slide = open_slide(tmp_path / "hurt.tif")
    with reader_pool.lease(slide._key) as reader:
        for y in (70, 128):
            with pytest.raises(openslide.OpenSlideError):
                reader.read_region(0, y, 70, 20, 20)
        read = slide.read((128, 0), 100, MPP)
    np.testing.assert_array_equal(read, whole[128:228, :100])


@pytest.mark.parametrize("reader", ["openslide", "tifffile"])
def test_threads_read_the_same_pixels(tmp_path, levels, monkeypatch, reader):
    """Also while files are being closed under them for want of room."""
    monkeypatch.setattr(reader_pool, "MAX_OPEN", 1)
    paths = [tmp_path / f"{i}.tif" for i in range(3)]
    for path in paths:
        if reader == "openslide":
            write_tiff(path, levels)
        else:
            write_strips(path, levels[0])
    slides = [open_slide(path) for path in paths]
    corners = np.random.default_rng(0).integers(0, 300, (150, 2))
    jobs = [(slides[i % 3], yx, MPP * (1 + i % 4)) for i, yx in enumerate(corners)]

    def read(job):
        slide, yx, mpp = job
        return slide.read(yx, 48, mpp)

    alone = [read(job) for job in jobs]
    before = [slide.bytes_decoded for slide in slides]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(read, jobs))
    np.testing.assert_array_equal(alone, together)
    assert [slide.bytes_decoded for slide in slides] == [2 * n for n in before]
    assert len(reader_pool._entries) <= 1


def test_a_file_in_use_stays_open(tmp_path, levels, monkeypatch):
    monkeypatch.setattr(reader_pool, "MAX_OPEN", 1)
    a, b = (
        open_slide(write_strips(tmp_path / name, levels[2]))
        for name in ("a.tif", "b.tif")
    )
    with reader_pool.lease(a._key) as reader:
        b.overview(MPP)
        a.close()
        read = reader.read_region(0, 0, 0, *levels[2].shape[:2])
        np.testing.assert_array_equal(read, levels[2])
    assert not reader_pool._entries


def test_open_files_are_few_and_closed_and_one_written_anew_is_read_anew(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(reader_pool, "MAX_OPEN", 2)
    opened, closed = [], []

    class Counted(TiffReader):
        def __init__(self, path):
            super().__init__(path)
            opened.append(self)

        def close(self):
            super().close()
            closed.append(self)

    image = picture(80, 90)
    slides = [
        open_slide(write_strips(tmp_path / f"{i}.tif", image), open_reader=Counted)
        for i in range(5)
    ]
    assert len(reader_pool._entries) == len(opened) - len(closed) == 2
    for slide in slides:
        with slide:
            np.testing.assert_array_equal(slide.overview(MPP), image)
    assert not reader_pool._entries
    assert set(map(id, opened)) == set(map(id, closed))
    assert len(closed) == len(opened)
    for one in (image, picture(96, 70, seed=1)):
        path = write_tiff(tmp_path / "same.tif", [one])
        np.testing.assert_array_equal(open_slide(path).overview(MPP), one)


def test_a_slide_is_pickled_as_its_path_and_read_after_a_fork(pyramid):
    slide = open_slide(pyramid, 0.3)
    read = slide.read((9, 9), 99, 0.3)
    sent = pickle.dumps(slide)
    assert len(sent) < 1000
    back = pickle.loads(sent)
    assert (back.mpp, back.levels, back.bytes_decoded) == (0.3, slide.levels, 0)
    np.testing.assert_array_equal(back.read((9, 9), 99, 0.3), read)
    program = f"""
import os
from wsi_jax.slides import decoded_tile_cache
from wsi_jax.slides.slide import open_slide
slide = open_slide({str(pyramid)!r})
before = slide.read((9, 9), 99, {MPP})
with decoded_tile_cache.tiles._lock:  # as another thread might have it
    if not (child := os.fork()):
        os._exit(int((slide.read((9, 9), 99, {MPP}) != before).any()))
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
