"""Batches of overviews, and crops of their slides that threads read on demand."""

import collections
import concurrent.futures
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped, UInt8

from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.types import Bag, Overviews, padded

TASK = 8  # crops a thread reads at a time: enough to make the call itself free
STRIP_PX = 512  # width of the least that is read where all tiles of a row will be
GIB = 1 << 30


class PendingCrops:
    """Crops that threads are reading."""

    def __init__(self, out: UInt8[np.ndarray, "b n s s 3"], tasks: Sequence):
        self._out, self._tasks = out, tasks

    def result(self) -> UInt8[np.ndarray, "b n s s 3"]:
        """Waits for all of them."""
        for task in self._tasks:
            task.result()
        return self._out


class _Strip(NamedTuple):
    """A row of tiles, or a crop."""

    pixels: UInt8[np.ndarray, "s w 3"]
    error: str  # why it is blank, or ""
    counted: set[int]  # columns where tiles begin that have been counted as read


class CropReader:
    """Makes batches of slides for methods that select the crops they read.

    Overviews, and whole slides where they are wanted, stay in memory as long as there
    is room. So do crops, which have half of it where overviews are wanted too: the
    first ones that were read, since of tiles that are read in turn the latest would
    never be met again.

    Where all tiles are read, those of a grid without gaps are cut from strips of some
    of them, always the same ones: a tile's pixels do not depend on what else is read.

    Args:
        mpps: um/px of the magnifications.
        crop_px: side of a crop.
        overviews: whether overviews are read; else they are blank.
        resident: whether batches hold the whole slides at these mpps.
        cache_gib: pixels kept in memory.
        least: (rows, columns) of cells that a batch has at least, so that all have one
            shape.
        all_tiles: whether crops are tiles, all of which will be read.
    """

    def __init__(
        self,
        mpps: Sequence[float],
        crop_px: int,
        *,
        overviews: bool = True,
        resident: bool,
        threads: int,
        cache_gib: float = 8.0,
        least: tuple[int, int] = (1, 1),
        all_tiles: bool = False,
    ):
        self._mpps, self._crop_px = tuple(mpps), crop_px
        self._overviews, self._resident = overviews, resident
        share = 0.0 if resident else 0.5 if overviews else 1.0  # of the room, to crops
        self._least, self._room = least, (1 - share) * cache_gib * GIB
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self._slides = {}  # of all batches so far, by number
        self._planes, self._lock = {}, Lock()
        # Strips have a lock of their own: planes are waited for under theirs.
        self._strips, self._strip_lock = {}, Lock()
        self._strip_room = share * cache_gib * GIB
        self._strip_px = crop_px * (max(1, STRIP_PX // crop_px) if all_tiles else 1)

    def bag(
        self,
        slides: Sequence[StreamedSlide],
        target: Shaped[np.ndarray, "b ..."],
        weight: Float32[np.ndarray, " b"],
        rows: slice = slice(None),
    ) -> Bag:
        """A batch of slides, all with cells of one side at one mpp.

        Targets and weights are of each row of the batch: rows behind the slides have no
        cells and weight 0. Of the slides in `rows` alone are pixels read, and held.
        """
        # All are being read before the first is waited for.
        own = slides[rows]
        planes = {
            (slide, mpp): self._plane(slide, mpp)
            for slide in own
            for mpp in self._plane_mpps(slide)
        }
        cell, b = slides[0].cell_px, len(target)
        shapes = [[-(-n // cell) for n in slide.shape] for slide in slides]
        grid = np.max([self._least, *shapes], 0)
        grid = tuple(padded(int(n), 4) for n in grid)
        mask = np.zeros((b, *grid), bool)
        background = np.full((b, 3), 255, np.uint8)
        for i, slide in enumerate(slides):
            tissue = slide.tissue()
            mask[i, : tissue.shape[0], : tissue.shape[1]] = tissue
            background[i] = slide.background
        background = background[rows]
        read = lambda mpp: [planes[slide, mpp].result() for slide in own]
        whole = lambda mpp: _stack(
            read(mpp), cell * slides[0].mpp / mpp, background, grid
        )
        sides = (cell * n for n in grid)
        overview = np.zeros((len(background), *sides, 3), np.uint8)
        if self._overviews:
            overview = whole(slides[0].mpp)
        if self._resident:
            x = Overviews(overview, background, tuple(map(whole, self._mpps)))
            return Bag(x, mask, target, weight)
        number = np.full(b, -1, np.int32)
        number[: len(slides)] = [slide.number for slide in slides]
        self._slides.update({slide.number: slide for slide in slides})
        return Bag(Overviews(overview, background, slide=number), mask, target, weight)

    def read(
        self,
        slides: Int[np.ndarray, " b"],
        magnification: Int[np.ndarray, "b n"],
        yx: Int[np.ndarray, "b n 2"],
        mask: Bool[np.ndarray, "b n"],
    ) -> PendingCrops:
        """Begins to read crops; what the mask leaves out stays black.

        Args:
            slides: numbers of slides of earlier batches; -1 where there is no slide.
            magnification: index of each crop's magnification.
            yx: its corner, in pixels at the magnification's mpp.
        """
        side = self._crop_px
        out = np.zeros((*mask.shape, side, side, 3), np.uint8)

        def read_some(slide, i, parts):
            for (k, y, x, width), crops in parts:
                strip = self._strip(slide, (y, x), (side, width), self._mpps[k])
                columns = [int(yx[i, j, 1]) - x for j in crops]
                for j, column in zip(crops, columns, strict=True):
                    out[i, j] = strip.pixels[:, column : column + side]
                with self._strip_lock:
                    new = set(columns) - strip.counted
                    strip.counted.update(new)
                slide.count(len(new), strip.error)

        tasks = []
        for i, number in enumerate(np.asarray(slides).tolist()):
            strips = self._strips_of(magnification[i], yx[i], np.flatnonzero(mask[i]))
            parts = [strips[k : k + TASK] for k in range(0, len(strips), TASK)]
            tasks += [
                self._pool.submit(read_some, self._slides[number], i, part)
                for part in parts
            ]
        return PendingCrops(out, tasks)

    def _strips_of(self, magnification, yx, crops):
        """Strips (magnification, y, x, width), and which of a slide's crops lie in
        each. A crop between tiles is a strip by itself."""
        side, strips = self._crop_px, collections.defaultdict(list)
        for j in crops.tolist():
            y, x = yx[j].tolist()
            width = side if y % side or x % side else self._strip_px
            first = x // width * width if width > side else x
            strips[int(magnification[j]), y, first, width].append(j)
        return list(strips.items())

    def _strip(self, slide, yx, size, mpp):
        key = slide, mpp, *yx, *size
        if (kept := self._strips.get(key)) is not None:
            return kept
        strip = _Strip(*slide.read(yx, size, mpp), set())
        if strip.error:  # it may be read another time
            return strip
        with self._strip_lock:
            if self._strip_room >= strip.pixels.nbytes and key not in self._strips:
                self._strip_room -= strip.pixels.nbytes
                self._strips[key] = strip
        return strip

    def _plane_mpps(self, slide):
        """um/px at which all of a slide is read."""
        return (slide.mpp,) * self._overviews + self._mpps * self._resident

    def _plane(self, slide, mpp):
        """A slide at one mpp, being read or in memory."""
        key = slide, mpp
        with self._lock:
            if key in self._planes:
                return self._planes[key]
            h, w = (n * slide.mpp / mpp for n in slide.shape)
            reading = self._pool.submit(slide.whole, mpp)
            self._room -= 3 * h * w
            # Without room the oldest go: they may be wanted last.
            while self._room < 0 and len(self._planes) > 1:
                old = next(iter(self._planes))
                self._room += self._planes.pop(old).result().nbytes
            self._planes[key] = reading
            return reading


def _stack(planes, cell_px, background, grid):
    """Slides at one mpp [b h w 3] on a grid of cells of `cell_px`, whole or not, and
    the background [b 3] beyond each."""
    shape = [int(np.ceil(n * cell_px - 1e-6)) for n in grid]
    out = np.empty((len(background), *shape, 3), np.uint8)
    out[:] = background[:, None, None]
    for row, plane in zip(out, planes, strict=False):
        row[: plane.shape[0], : plane.shape[1]] = plane[: shape[0], : shape[1]]
    return out
