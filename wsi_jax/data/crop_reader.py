"""Overviews of slides as batches, and the crops that a method chose of them."""

import collections
import concurrent.futures
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.types import Bag, Looks, padded

TASK = 8  # crops a thread reads at a time: enough to make the call itself free
STRIP_PX = 512  # width of the least that is read where all tiles of a row will be
GIB = 1 << 30


class Crops:
    """Crops that threads are reading."""

    def __init__(self, out: UInt8[np.ndarray, "b n s s 3"], tasks: Sequence):
        self._out, self._tasks = out, tasks

    def result(self) -> UInt8[np.ndarray, "b n s s 3"]:
        """Waits for all of them."""
        for task in self._tasks:
            task.result()
        return self._out


class _Strip(NamedTuple):
    """A row of tiles: why it is blank, or ""; where those begin that are counted."""

    pixels: UInt8[np.ndarray, "s w 3"]
    lost: str
    seen: set[int]


class CropReader:
    """Makes batches of slides for methods that look first.

    Overviews, and whole slides where they are wanted, stay in memory as long as there
    is room. So do crops, which have half of it where overviews are wanted too: the
    first ones that were read, since of tiles that are read in turn the latest would
    never be met again.

    Where all tiles are read, those of a grid without gaps are cut from strips of some
    of them, always the same ones: a tile's pixels do not depend on what else is read.

    Args:
        mpps: um/px of the magnifications.
        crop_px: side of a crop.
        overviews: whether they are wanted; else they are blank.
        resident: whether batches hold the whole slides at these mpps.
        threads: that read.
        cache_gib: of pixels kept in memory.
        least: (rows, columns) of cells that a batch has at least, so that all have one
            shape.
        all_tiles: whether crops are tiles of which all will be read.
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
        self._known, self._lock = {}, Lock()
        # Strips have a lock of their own: planes are waited for under theirs.
        self._strips, self._strip_lock = {}, Lock()
        self._strip_room = share * cache_gib * GIB
        self._strip_px = crop_px * (max(1, STRIP_PX // crop_px) if all_tiles else 1)

    def bag(
        self,
        views: Sequence[StreamedSlide],
        label: Int32[np.ndarray, " b"],
        weight: Float32[np.ndarray, " b"],
        after: Bag | None = None,
    ) -> Bag:
        """A batch; slides missing at its end have no cells and no weight.

        Args:
            views: of the slides, all with cells of one side at one mpp.
            label: of each row of the batch.
            weight: of each row; 0 behind the slides.
            after: the batch that comes next.
        """
        # All are being read before the first is waited for.
        planes = {
            (view, mpp): self._plane(view, mpp)
            for view in views
            for mpp in self._needed(view)
        }
        cell, b = views[0].cell_px, len(label)
        shapes = [[-(-n // cell) for n in view.shape] for view in views]
        grid = np.max([self._least, *shapes], 0)
        grid = tuple(padded(int(n), 4) for n in grid)
        mask = np.zeros((b, *grid), bool)
        background = np.full((b, 3), 255, np.uint8)
        for i, view in enumerate(views):
            tissue = view.tissue()
            mask[i, : tissue.shape[0], : tissue.shape[1]] = tissue
            background[i] = view.background
        read = lambda mpp: [planes[view, mpp].result() for view in views]
        whole = lambda mpp: _stack(
            read(mpp), cell * views[0].mpp / mpp, background, grid
        )
        overview = np.zeros((b, *(cell * n for n in grid), 3), np.uint8)
        if self._overviews:
            overview = whole(views[0].mpp)
        looks = Looks(overview, background, after=after)
        if self._resident:
            looks = looks._replace(planes=tuple(map(whole, self._mpps)))
        else:
            crops = lambda *chosen: self.read(views, *chosen)
            looks = looks._replace(read=crops, slides=tuple(views))
        return Bag(looks, mask, label, weight)

    def read(
        self,
        views: Sequence[StreamedSlide],
        which: Int[np.ndarray, "b n"],
        yx: Int[np.ndarray, "b n 2"],
        mask: Bool[np.ndarray, "b n"],
    ) -> Crops:
        """Begins to read crops; what the mask leaves out stays black.

        Args:
            views: of the slides.
            which: magnification of each crop.
            yx: its corner, in pixels at the magnification's mpp.
            mask: False where none is read.
        """
        side = self._crop_px
        out = np.zeros((*which.shape, side, side, 3), np.uint8)

        def some(i, parts):
            for (k, y, x, width), chosen in parts:
                strip = self._strip(views[i], (y, x), (side, width), self._mpps[k])
                ats = [int(yx[i, j, 1]) - x for j in chosen]
                for j, at in zip(chosen, ats, strict=True):
                    out[i, j] = strip.pixels[:, at : at + side]
                with self._strip_lock:
                    new = set(ats) - strip.seen
                    strip.seen.update(new)
                views[i].count(len(new), strip.lost)

        tasks = []
        for i in range(len(views)):
            strips = self._strips_of(which[i], yx[i], np.flatnonzero(mask[i]))
            parts = [strips[k : k + TASK] for k in range(0, len(strips), TASK)]
            tasks += [self._pool.submit(some, i, part) for part in parts]
        return Crops(out, tasks)

    def _strips_of(self, which, yx, chosen):
        """Strips (magnification, y, x, width), and which of a slide's crops lie in
        each. A crop between tiles is a strip by itself."""
        side, strips = self._crop_px, collections.defaultdict(list)
        for j in chosen.tolist():
            y, x = yx[j].tolist()
            width = side if y % side or x % side else self._strip_px
            first = x // width * width if width > side else x
            strips[int(which[j]), y, first, width].append(j)
        return list(strips.items())

    def _strip(self, view, yx, size, mpp):
        key = view, mpp, *yx, *size
        if (known := self._strips.get(key)) is not None:
            return known
        strip = _Strip(*view.read(yx, size, mpp), set())
        with self._strip_lock:
            if self._strip_room >= strip.pixels.nbytes and key not in self._strips:
                self._strip_room -= strip.pixels.nbytes
                self._strips[key] = strip
        return strip

    def _needed(self, view):
        """um/px at which all of a slide is read."""
        return (view.mpp,) * self._overviews + self._mpps * self._resident

    def _plane(self, view, mpp):
        """A slide at one mpp, being read or in memory."""
        key = view, mpp
        with self._lock:
            if key in self._known:
                return self._known[key]
            h, w = (n * view.mpp / mpp for n in view.shape)
            reading = self._pool.submit(view.whole, mpp)
            self._room -= 3 * h * w
            # Without room the oldest go: they may be wanted last.
            while self._room < 0 and len(self._known) > 1:
                old = next(iter(self._known))
                self._room += self._known.pop(old).result().nbytes
            self._known[key] = reading
            return reading


def _stack(planes, cell_px, background, grid):
    """Slides at one mpp [b h w 3], background beyond each.

    Args:
        planes: of the slides.
        cell_px: side of a cell at this mpp, whole or not.
        background: [b 3].
        grid: (rows, columns) of cells.
    """
    shape = [int(np.ceil(n * cell_px - 1e-6)) for n in grid]
    out = np.empty((len(background), *shape, 3), np.uint8)
    out[:] = background[:, None, None]
    for row, plane in zip(out, planes, strict=False):
        row[: plane.shape[0], : plane.shape[1]] = plane[: shape[0], : shape[1]]
    return out
