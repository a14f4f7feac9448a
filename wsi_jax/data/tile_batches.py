"""Batches of tiles, of many slides at once, read by threads ahead of the device."""

import contextlib
import dataclasses
import math
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from wsi_jax.config_fields import COUNT, POSITIVE
from wsi_jax.data.order import process_rows, tile_order
from wsi_jax.data.prefetch import parallel_batches
from wsi_jax.slides.decoded_tile_cache import off_aligned_buffer
from wsi_jax.slides.file_faults import is_hung
from wsi_jax.slides.slide import SlideError, open_slide

# Tiles per Python call: enough to make the call itself free, and neighbours, which
# share tiles of the file, come together.
CHUNK = 32
ENDLESS = np.iinfo(np.int64).max


class TileSource(NamedTuple):
    """The tiles to read from one slide."""

    path: str
    mpp: float | None  # um/px of level 0, if the manifest gives it; wins over the file
    yx: Int[np.ndarray, "n 2"]  # top-left corners, in pixels at the grid's mpp


class TileBatch(NamedTuple):
    """Tiles of any number of slides; index -1 where one only fills the batch."""

    pixels: UInt8[np.ndarray, "b h w 3"]  # zeros where not `ok`
    slide: Int32[np.ndarray, " b"]  # index into the sources
    tile: Int32[np.ndarray, " b"]  # index into that source's `yx`
    ok: Bool[np.ndarray, " b"]  # False where there is none, or it could not be read


@dataclasses.dataclass(kw_only=True)
class Reading:
    """How tiles are read.

    Attributes:
        threads: number of threads that read and decode.
        prefetch: number of batches kept ready.
        max_unreadable: fraction of a slide's tiles that may be unreadable before the
            slide is refused.
        hang_s: seconds after which a read that has not come back is named on stderr;
            after ten times as long it counts as unreadable.
    """

    threads: int = 16
    prefetch: int = 2
    max_unreadable: float = 0.1
    hang_s: float = 60.0

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **{"threads": COUNT, "prefetch": COUNT, "hang_s": (POSITIVE, math.inf)},
        "max_unreadable": (0, 1),
    }


@dataclasses.dataclass
class TileCounts:
    """Counts of tiles, bytes and seconds of a loader so far.

    Of each slide that was read, by its index, `decoded` has the bytes of pixels decoded
    from its levels, and `reasons` the first error, if there was one.
    """

    tiles: int = 0
    failed: int = 0
    decoded: dict[int, int] = dataclasses.field(default_factory=dict)
    reading_s: float = 0.0  # in reads, summed over threads
    waiting_s: float = 0.0  # of whoever takes the batches
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def bytes_decoded(self) -> int:
        """Bytes of pixels decoded from all slides' levels."""
        return sum(self.decoded.values())


def tile_batches(
    sources: Sequence[TileSource],
    *,
    mpp: float,
    size_px: int,
    batch_size: int,
    reading: Reading,
    seed: int | None = None,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    counts: TileCounts | None = None,
) -> Iterator[TileBatch]:
    """Reads tiles in batches that do not care where a slide ends.

    Without a seed there is one pass, in the order given; with one, passes without end,
    each in a new order. Batch i is a function of the seed and i alone: to resume, start
    there. A tile that cannot be read has `ok` False and is counted with its reason.

    Args:
        sources: the slides and their tiles.
        mpp: um/px of the tiles.
        size_px: side of a tile, in pixels.
        batch_size: tiles per batch, over all processes.
        process: which of the `processes` this is; it gets its rows of every batch.
        counts: updated while batches are read.

    ValueError: the batch does not divide among the processes.
    """
    rows = process_rows(batch_size, process, processes)
    counts = TileCounts() if counts is None else counts
    places = _Places(sources, batch_size, rows, seed)
    read = _Reader(sources, mpp, size_px, counts)
    n_rows = rows.stop - rows.start
    batches = _Pixels((n_rows, size_px, size_px, 3))
    chunk = min([c for c in range(CHUNK, n_rows) if n_rows % c == 0], default=n_rows)
    parts = n_rows // chunk

    def read_part(i):
        step, part = divmod(i, parts)
        part = slice(part * chunk, (part + 1) * chunk)
        slide, tile = places(step)
        return (read(slide[part], tile[part], batches.of(step)[part]),)

    steps = places.steps(ENDLESS // parts)
    stacks = parallel_batches(
        read_part,
        range(start * parts, steps * parts),
        group=parts,
        threads=reading.threads,
        prefetch=reading.prefetch,
    )
    return _batches(range(start, steps), stacks, batches, places, read, counts)


def _batches(steps, stacks, batches, places, read, counts):
    with contextlib.closing(read), contextlib.closing(stacks):
        for step in steps:
            began = time.perf_counter()
            (ok,) = next(stacks)
            counts.waiting_s += time.perf_counter() - began
            yield TileBatch(batches.take(step), *places(step), ok.reshape(-1))


class _Places:
    """(slide, tile) of each of this process's rows of a batch."""

    def __init__(self, sources, batch_size, rows, seed):
        self.batch_size, self.rows, self.seed = batch_size, rows, seed
        lengths = [0, *(len(source.yx) for source in sources)]
        self.starts = np.cumsum(lengths, dtype=np.int64)
        self.n = int(self.starts[-1])

    def steps(self, endless):
        """Number of batches; `endless` where passes follow each other."""
        if self.seed is not None and self.n:
            return endless
        return -(-self.n // self.batch_size)

    def __call__(self, step):
        index = tile_order(self.n, self.batch_size, step, self.seed)[self.rows]
        slide = np.searchsorted(self.starts[1:], index, side="right")
        tile = index - self.starts[slide]
        return np.where(index >= 0, (slide, tile), -1).astype(np.int32)


class _Pixels:
    """Memory of the batches that are being read; that of a batch no longer in use is
    written again. Threads write each tile in place: nothing is copied."""

    def __init__(self, shape):
        self.shape, self.lock = shape, threading.Lock()
        self.batches, self.free = {}, []

    def of(self, step):
        with self.lock:
            if step not in self.batches:
                new = not self.free
                memory = off_aligned_buffer(self.shape) if new else self.free.pop()
                self.batches[step] = memory
            return self.batches[step]

    def take(self, step):
        with self.lock:
            memory = self.batches.pop(step)
        # Whatever is cut from an array on a memoryview keeps that array alive.
        pixels = np.asarray(memoryview(memory))
        if not is_hung():  # else a thread left behind may write to it yet
            weakref.finalize(pixels, self.free.append, memory).atexit = False
        return pixels


class _Reader:
    """Reads chunks of tiles; called by many threads at once."""

    def __init__(self, sources, mpp, size_px, counts):
        self.sources, self.mpp, self.size_px = sources, mpp, size_px
        self.counts, self.lock = counts, threading.Lock()
        self.slides, self.unopened = {}, set()

    def __call__(self, slides, tiles, pixels):
        began = time.perf_counter()
        ok = np.zeros(len(slides), bool)
        for index in set(slides[slides >= 0].tolist()):
            rows = np.flatnonzero(slides == index)
            ok[rows] = self._read(index, tiles[rows], [pixels[i] for i in rows])
        pixels[~ok] = 0
        read, wanted = int(ok.sum()), int(np.sum(slides >= 0))
        with self.lock:
            self.counts.tiles += read
            self.counts.failed += wanted - read
            for index in self.slides.keys() & set(slides.tolist()):
                self.counts.decoded[index] = self.slides[index].bytes_decoded
            self.counts.reading_s += time.perf_counter() - began
        return ok

    def _read(self, index, tiles, out):
        """Whether each of some tiles of a slide was read."""
        try:
            slide = self._slide(index)
            if slide is None:
                return False
            errors = slide.read_tiles(self.sources[index].yx[tiles], self.mpp, out)
        except SlideError as error:
            errors = [error] * len(out)
        for error in filter(None, errors):
            with self.lock:
                self.counts.reasons.setdefault(index, str(error))
        return [error is None for error in errors]

    def _slide(self, index):
        """The slide, opened when it is first read; None if it did not open before."""
        if index not in self.slides and index not in self.unopened:
            source = self.sources[index]
            try:
                slide = open_slide(source.path, source.mpp)
            except SlideError:
                self.unopened.add(index)
                raise
            with self.lock:
                self.slides.setdefault(index, slide)
        return self.slides.get(index)

    def close(self):
        for slide in list(self.slides.values()):  # threads may still open some
            slide.close()
