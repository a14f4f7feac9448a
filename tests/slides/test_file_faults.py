"""What fails for a moment is read again; what hangs is named, then refused alone.

The faults are raised or waited for in a reader of our own, which a slide may be opened
with. `tests/run/test_faults.py` has them from the kernel.
"""

import errno
import os
import threading
import time

import numpy as np
import pytest
from slides.tiffs import MPP, picture, write_strips

from wsi_jax.data.tile_batches import Reading, TileCounts, TileSource, tile_batches
from wsi_jax.slides import file_faults, open_reader
from wsi_jax.slides.slide import SlideError, open_slide
from wsi_jax.slides.tiff_reader import TiffReader

IMAGE = picture(64, 64)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(file_faults, "WAITS_S", (0.01,) * 3)


class Faulty(TiffReader):
    """Raises the errors of `todo`, one a read, before it reads."""

    def __init__(self, path):
        super().__init__(path)
        self.todo, self.reads = todo, reads

    def read_region(self, *region):
        self.reads.append(region)
        if self.todo:
            raise self.todo.pop()
        return super().read_region(*region)


todo, reads = [], []


@pytest.fixture
def slide(tmp_path):
    todo.clear()
    reads.clear()
    return open_slide(write_strips(tmp_path / "s.tif", IMAGE), open_reader=Faulty)


def fault(number, kind=OSError):
    return kind(number, os.strerror(number), "s.tif")


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "EINTR", "EAGAIN"])
def test_a_fault_that_passes_is_not_noticed(slide, name):
    number = getattr(errno, name)
    todo.extend([fault(number), RuntimeError(f"decoder: {os.strerror(number)}")] * 2)
    np.testing.assert_array_equal(slide.read((0, 0), 64, MPP), IMAGE)
    assert not todo


def test_a_fault_that_stays_refuses_by_name_and_is_waited_for_once(slide):
    todo.extend([fault(errno.EIO)] * 100)
    mend = r"s: .*Input/output error.* See that the disk or network of .*s\.tif answers"
    with pytest.raises(SlideError, match=mend):
        slide.read((0, 0), 64, MPP)
    tries = len(reads)
    assert tries == 2 * (len(file_faults.WAITS_S) + 1)  # shared reader, then a new one
    with pytest.raises(SlideError, match=mend):
        slide.read((0, 0), 64, MPP)
    assert len(reads) == tries + 2
    todo.clear()  # the disk is back: so is patience
    slide.read((0, 0), 64, MPP)
    todo.extend([fault(errno.EIO)] * 4)
    np.testing.assert_array_equal(slide.read((0, 0), 64, MPP), IMAGE)


def test_what_cannot_pass_is_not_waited_for(slide):
    for error in (fault(errno.ENOENT), ValueError("a damaged tile")):
        todo[:], reads[:] = [error] * 2, []
        with pytest.raises(SlideError, match=r"Copy .*s\.tif again, or leave it out"):
            slide.read((0, 0), 64, MPP)
        assert len(reads) == 2


def test_a_read_that_hangs_is_named_then_refused_while_others_go_on(
    tmp_path, monkeypatch, capsys
):
    """A named pipe, which blocks its reader in the kernel. What is written once it
    comes back harms nobody."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    back = threading.Event()

    class Hanging(TiffReader):
        def __init__(self, path):
            super().__init__(path)
            self.hangs = "bad" in path and not back.is_set()

        def read_regions(self, level, corners, outs):
            if self.hangs:
                pipe.read_bytes()
            super().read_regions(level, corners, outs)
            if self.hangs:
                back.set()

    names, images = ("a", "bad", *"cdef"), [picture(256, 256, i) for i in range(6)]
    yx = np.stack(np.indices((4, 4)), -1).reshape(-1, 2) * 64
    sources = [
        TileSource(str(write_strips(tmp_path / f"{name}.tif", image)), MPP, yx)
        for name, image in zip(names, images, strict=True)
    ]
    monkeypatch.setattr(open_reader, "READERS", (Hanging,))
    monkeypatch.setitem(file_faults._settings, "hang_s", 0.2)
    counts, options = TileCounts(), {"mpp": MPP, "size_px": 64, "batch_size": 8}
    batches = []
    for batch in tile_batches(
        sources, counts=counts, reading=Reading(threads=4), **options
    ):
        assert batch.ok.tolist() == [batch.slide[0] != 1] * 8
        if batch.ok.all():  # of the others the memory is free to be used again
            batches.append(batch)
    assert len(batches) == 10
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "bad: a read" in line]
    assert f"{sources[1].path} has not come back for 0.2 s" in line
    assert "has not come back for 2 s" in counts.reasons[1]
    assert "See that the disk or network of" in counts.reasons[1]
    with pytest.raises(SlideError, match="bad: cannot be read"):
        open_slide(sources[1].path)
    pipe.write_bytes(b"")  # the disk is back
    assert back.wait(10)
    for batch in batches:
        for pixels, slide, tile in zip(*batch[:3], strict=True):
            y, x = yx[tile]
            np.testing.assert_array_equal(pixels, images[slide][y : y + 64, x : x + 64])
    while file_faults.is_hung():
        time.sleep(0.01)
    read = open_slide(sources[1].path).read((0, 0), 256, MPP)
    np.testing.assert_array_equal(read, images[1])
