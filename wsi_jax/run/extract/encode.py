"""Features of tiles, computed in batches that mix the tiles of several slides."""

import collections
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree, UInt8

from wsi_jax.data.prefetch import prefetch_to_device
from wsi_jax.data.tile_batches import (
    Reading,
    TileBatch,
    TileCounts,
    TileSource,
    tile_batches,
)
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.nets.trunk import Trunk
from wsi_jax.run.tiling import TiledSlide
from wsi_jax.slides.grid import Grid
from wsi_jax.training.compile import compile_encoder, replicate, split

AHEAD = 2  # batches on the device while the host reads and writes


class CompiledEncoder:
    """An encoder on the devices; its weights are read when they are first needed.

    Args:
        trunk: the encoder.
        mesh: devices over which each batch of tiles is split.
        spread: whether the weights are divided among them too.
    """

    def __init__(self, trunk: Trunk, mesh: Mesh, spread: bool = False):
        self.trunk, self.mesh, self._spread = trunk, mesh, spread

    @functools.cached_property
    def params(self) -> PyTree:
        """Its weights, on every device."""
        return replicate(self.trunk.params(), self.mesh, self._spread)

    @functools.cached_property
    def _apply(self) -> Callable:
        return compile_encoder(self.trunk.make().apply, self.mesh)

    def __call__(self, pixels: UInt8[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Features of tiles whose pixels are split over the mesh."""
        return self._apply(self.params, pixels)


class Encoded(NamedTuple):
    """The features of one slide.

    Attributes:
        index: the slide's index among the sources.
        x: features [n d] float32 of the tiles that could be read.
        kept: indices [n] of those tiles.
        lost: number of tiles that could not be read.
        reason: why the first of them could not be read, or "".
    """

    index: int
    x: np.ndarray
    kept: np.ndarray
    lost: int
    reason: str

    def unreadable_note(self) -> str:
        """What is missing from the slide, or ""."""
        return unreadable(self.lost, self.lost + len(self.kept), self.reason)

    def refusal(self, max_unreadable: float) -> str:
        """Why the slide cannot be used, or "".

        Args:
            max_unreadable: fraction of its tiles that may be unreadable.
        """
        n = self.lost + len(self.kept)
        if not len(self.kept):
            return self.reason
        if self.lost <= max_unreadable * n:
            return ""
        return (
            f"{self.unreadable_note()}; more than --config.reading.max_unreadable="
            f"{max_unreadable:g}: copy the slide again, or raise it"
        )


def unreadable(lost: int, n: int, reason: str) -> str:
    """A note on the tiles of a slide that could not be read; "" where all could."""
    return f"{lost} of {n} tiles unreadable: {reason}" if lost else ""


def encode(
    sources: Sequence[TileSource],
    grid: Grid,
    encoder: CompiledEncoder,
    *,
    batch: int,
    reading: Reading,
    meter: Meter,
    counts: TileCounts,
) -> Iterator[Encoded]:
    """Encodes the tiles of slides in batches that hold tiles of any of them.

    Slides come out one by one, in order, as soon as their last tile is encoded. The
    device works on one batch while the next is read and the last is written.

    Args:
        sources: slides and their tiles.
        grid: mpp and size of the tiles.
        encoder: the encoder, on the devices.
        batch: tiles in a batch; a multiple of the devices.
        reading: threads and buffers.
        meter: is charged with the seconds of waiting and of the device.
        counts: the loader's counts, kept up to date for a progress bar.
    """
    batches = tile_batches(
        sources,
        mpp=grid.mpp,
        size_px=grid.size_px,
        batch_size=batch,
        reading=reading,
        counts=counts,
    )
    by_slide = _BySlide(sources, counts)
    for features, tiles in _encoded_batches(batches, encoder, meter):
        by_slide.add(features, tiles)
        yield from by_slide.complete()
    yield from by_slide.complete()  # slides without a tile, behind the last that has


def encode_slides(
    slides: Sequence[TiledSlide],
    yx: Sequence[np.ndarray],
    grid: Grid,
    encoder: CompiledEncoder,
    *,
    batch: int,
    reading: Reading,
    meter: Meter,
) -> list[Encoded]:
    """Features of some tiles of slides, kept in memory; the meter is charged.

    Args:
        slides: the slides.
        yx: corners [n 2] of the tiles of each, in pixels of the grid.
        grid, encoder, batch, reading, meter: as those of `encode`.
    """
    counts = TileCounts()
    sources = [
        TileSource(slide.row.path, slide.row.mpp, places)
        for slide, places in zip(slides, yx, strict=True)
    ]
    options = {"batch": batch, "reading": reading, "meter": meter, "counts": counts}
    encoded = list(encode(sources, grid, encoder, **options))
    meter.add(tiles=counts.tiles, bytes_decoded=counts.bytes_decoded)
    return encoded


def _encoded_batches(
    batches: Iterator[TileBatch], encoder: CompiledEncoder, meter: Meter
) -> Iterator[tuple[np.ndarray, TileBatch]]:
    """Features [b d] of batches, some of which the device works on meanwhile."""
    put = lambda tiles: (split(tiles.pixels, encoder.mesh), tiles)
    on_device = prefetch_to_device(batches, put, AHEAD)
    on_device = itertools.chain(on_device, itertools.repeat((None, None)))
    running = collections.deque()
    free_since = 0.0  # when the device ended its last batch
    while True:
        with meter.span("wait"):
            pixels, tiles = next(on_device)
        if tiles is not None:
            running.append((encoder(pixels), tiles, time.perf_counter()))
        elif not running:
            return
        if tiles is None or len(running) > AHEAD:
            features, tiles, began = running.popleft()
            with meter.span("encode"):
                features = np.asarray(features)
            now = time.perf_counter()
            meter.add(device_s=now - max(began, free_since))
            free_since = now
            yield features, tiles


class _BySlide:
    """Collects encoded tiles until all of a slide are there."""

    def __init__(self, sources: Sequence[TileSource], counts: TileCounts):
        self.lengths = [len(source.yx) for source in sources]
        self.counts = counts
        self.parts = collections.defaultdict(list)
        self.arrived = collections.Counter()
        self.next = 0

    def add(self, features: np.ndarray, tiles: TileBatch) -> None:
        """Adds a batch."""
        for slide in np.unique(tiles.slide[tiles.slide >= 0]).tolist():
            own = tiles.slide == slide
            self.arrived[slide] += int(own.sum())
            own &= tiles.ok
            self.parts[slide].append((features[own], tiles.tile[own]))

    def complete(self) -> Iterator[Encoded]:
        """The next slides of which every tile has arrived."""
        while (
            self.next < len(self.lengths)
            and self.arrived[self.next] == self.lengths[self.next]
        ):
            nothing = np.zeros((0, 0), np.float32), np.zeros(0, np.int32)
            x, kept = zip(*self.parts.pop(self.next, [nothing]), strict=True)
            kept = np.concatenate(kept)
            lost = self.lengths[self.next] - len(kept)
            reason = self.counts.reasons.get(self.next, "")
            yield Encoded(self.next, np.concatenate(x), kept, lost, reason)
            self.next += 1
