"""A slide for methods that read pixels: its tissue, tiles and crops."""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8

from wsi_jax.slides.slide import Slide, SlideError, open_slide

AHEAD_BYTES = 1 << 30  # of tiles read before they are asked for
NUMBERS = itertools.count()


class StreamedSlide:
    """A slide at one mpp, never whole in memory.

    A turn, 0 to 7, shows it turned or flipped (`ops.augment.rotate_flip`) without
    reading it otherwise than tile by tile: bit 0 transposes, then bit 1 reverses y,
    then bit 2 reverses x.

    Attributes:
        number: by which batches name the slide; no other of this process has it.
        path: of the slide.
        yx: corners of the cells with tissue [n 2], in pixels at mpp.
        cell_px: side of a cell.
        mpp: um/px.
        shape: (h, w) at mpp.
        n_read: tiles read so far.
        n_unreadable: of them those that could not be read.
        first_error: why the first of them could not be; "" where all were read.
    """

    def __init__(
        self,
        path: str,
        given_mpp: float | None,
        yx: Int[np.ndarray, "n 2"],
        cell_px: int,
        mpp: float,
        threads: int = 4,
        shape: tuple[int, int] | None = None,
    ):
        """A slide that is opened when it is first read; SlideError where it cannot be.

        `given_mpp`, of level 0, wins over the file; `threads` read ahead. Without a
        `shape`, as above, the slide is opened for it.
        """
        self.number = next(NUMBERS)
        self.path, self._given_mpp = path, given_mpp
        self.yx, self.cell_px, self.mpp = yx, cell_px, mpp
        self.n_read, self.n_unreadable, self.first_error = 0, 0, ""
        self._threads, self._lock = threads, threading.Lock()
        self.shape = shape or self._slide.shape_at(mpp)

    @functools.cached_property
    def _slide(self) -> Slide:
        return open_slide(self.path, self._given_mpp)

    def rotated_shape(self, turn: int) -> tuple[int, int]:
        """(h, w) of the slide under a turn."""
        return self.shape[::-1] if turn & 1 else self.shape

    def tissue(self, turn: int = 0) -> Bool[np.ndarray, "y x"]:
        """The cells with tissue, counted from the corner of the slide as it is turned.

        Where the sides of the slide are no multiples of a cell the cells of another
        turn lie elsewhere; one has tissue where its centre lies in a cell that has.
        """
        grid = np.zeros([-(-n // self.cell_px) for n in self.shape], bool)
        cells = self.yx // self.cell_px
        grid[cells[:, 0], cells[:, 1]] = True
        if not turn:
            return grid
        size = self.rotated_shape(turn)
        centres = []
        for axis, n in enumerate(size):
            first = np.arange(-(-n // self.cell_px)) * self.cell_px
            centre = (first + np.minimum(first + self.cell_px, n)) // 2
            centres.append(n - 1 - centre if turn >> (1 + axis) & 1 else centre)
        if turn & 1:
            return grid[centres[1] // self.cell_px][:, centres[0] // self.cell_px].T
        return grid[centres[0] // self.cell_px][:, centres[1] // self.cell_px]

    def tiles(
        self, order: Iterable[tuple[int, int]], tile_px: tuple[int, int], turn: int = 0
    ) -> Iterator[UInt8[np.ndarray, "1 h w 3"]]:
        """Tiles (height, width) at indices (row, column), in order, read ahead in
        threads.

        Beyond the slide anything may stand. A tile that cannot be read is blank, and
        `first_error` says why.
        """
        size = 3 * tile_px[0] * tile_px[1]
        ahead = max(2, min(2 * self._threads, AHEAD_BYTES // size))
        waiting, order = collections.deque(), iter(order)
        with contextlib.ExitStack() as stack:
            pool = concurrent.futures.ThreadPoolExecutor(self._threads)
            stack.callback(pool.shutdown, cancel_futures=True)
            for at in order:
                waiting.append(pool.submit(self._tile, at, tile_px, turn))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def crop(
        self, yx: Sequence[int], size: int | tuple[int, int], mpp: float
    ) -> UInt8[np.ndarray, "h w 3"]:
        """A rectangle of the slide, (h, w) or square, its corner in pixels at `mpp`.

        Blank, with a note, if it is damaged.
        """
        pixels, error = self.read(yx, size, mpp)
        self.count(1, error)
        return pixels

    def read(
        self, yx: Sequence[int], size: int | tuple[int, int], mpp: float
    ) -> tuple[UInt8[np.ndarray, "h w 3"], str]:
        """As `crop`, not counted yet; and why it is blank, or ""."""
        slide = self._slide  # which may be no slide, unlike a tile that is damaged
        try:
            return slide.read(yx, size, mpp), ""
        except SlideError as error:
            size = (size, size) if isinstance(size, int) else size
            return np.full((*size, 3), self.background, np.uint8), str(error)

    def count(self, tiles: int, error: str) -> None:
        """Counts tiles as read, or, with an error, as unreadable."""
        with self._lock:
            self.n_read += tiles
            self.n_unreadable += tiles * bool(error)
            self.first_error = self.first_error or error

    def whole(self, mpp: float) -> UInt8[np.ndarray, "h w 3"]:
        """All of the slide at an mpp."""
        return self.crop((0, 0), self._slide.shape_at(mpp), mpp)

    @property
    def background(self) -> tuple[int, int, int]:
        """RGB of what lies off the slide."""
        return self._slide.background

    def unreadable_note(self) -> str:
        """What of the slide could not be read, or ""."""
        count = f"{self.n_unreadable} of {self.n_read}"
        what = f"{count} reads of tiles failed, taken as blank"
        return f"{what}: {self.first_error}" if self.first_error else ""

    def close(self) -> None:
        """Closes the file; a later read opens it again."""
        if "_slide" in self.__dict__:
            self._slide.close()

    @property
    def bytes_decoded(self) -> int:
        """Of pixels decoded from the slide's levels so far."""
        return self._slide.bytes_decoded if "_slide" in self.__dict__ else 0

    def _tile(self, at, tile_px, turn):
        box = []
        for axis, n in enumerate(self.rotated_shape(turn)):
            first = at[axis] * tile_px[axis]
            reverse = turn >> (1 + axis) & 1
            box.append(n - first - tile_px[axis] if reverse else first)
        size = tile_px
        if turn & 1:
            box, size = box[::-1], size[::-1]
        tile = self.crop(box, size, self.mpp)
        tile = tile.swapaxes(0, 1) if turn & 1 else tile
        tile = tile[::-1] if turn & 2 else tile
        tile = tile[:, ::-1] if turn & 4 else tile
        return np.ascontiguousarray(tile)[None]
