"""From tiles to features: batches do not care where a slide ends."""

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from wsi_jax.data.prefetch import prefetch_to_device
from wsi_jax.data.tiles import Reading, TileCounts, TileSource, tile_batches
from wsi_jax.evals.cost import Meter
from wsi_jax.slides.grid import Grid
from wsi_jax.training.compile import split

AHEAD = 2  # batches on the device while the host reads and writes


class Encoded(NamedTuple):
    """The features of one slide.

    Attributes:
        index: of the slide among the sources.
        x: [n d] float32, of the tiles that could be read.
        kept: [n] which tiles those are.
        lost: tiles that could not be read.
        reason: of the first of them, or "".
    """

    index: int
    x: np.ndarray
    kept: np.ndarray
    lost: int
    reason: str

    def note(self) -> str:
        """What is missing from the slide, or ""."""
        return unreadable(self.lost, self.lost + len(self.kept), self.reason)

    def refusal(self, share: float) -> str:
        """Why the slide cannot be used when more than `share` is missing, or ""."""
        n = self.lost + len(self.kept)
        if not len(self.kept):
            return self.reason
        if self.lost <= share * n:
            return ""
        return (
            f"{self.note()}; more than --config.reading.max_unreadable={share:g}: copy "
            "the slide again, or raise it"
        )


def unreadable(lost: int, n: int, reason: str) -> str:
    """A note on the tiles that a slide has lost, "" where it has none."""
    return f"{lost} of {n} tiles unreadable: {reason}" if lost else ""


def encode(
    sources: Sequence[TileSource],
    grid: Grid,
    apply: Callable,
    *,
    params,
    mesh: Mesh,
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
        grid: of the tiles.
        apply: the encoder, compiled.
        params: of the encoder, on every device.
        mesh: over whose devices each batch is split.
        batch: tiles; a multiple of the devices.
        reading: threads and buffers.
        meter: is charged with tiles, bytes and the time waited.
        counts: of the loader, kept up to date for a progress bar.
    """
    batches = tile_batches(
        sources,
        mpp=grid.mpp,
        size_px=grid.size_px,
        batch_size=batch,
        reading=reading,
        counts=counts,
    )
    gather = _Gather(sources, counts)
    running = collections.deque()
    done = 0.0

    def finish(idle_since):
        features, tiles, began = running.popleft()
        with meter.span("encode"):
            features = np.asarray(features)
        now = time.perf_counter()
        meter.add(device_s=now - max(began, idle_since))
        return now, gather(features, tiles)

    def put(tiles):
        return split(tiles.pixels, mesh), tiles

    batches = prefetch_to_device(batches, put, AHEAD)
    while True:
        with meter.span("wait"):
            ready = next(batches, None)
        if ready is None:
            break
        pixels, tiles = ready
        running.append((apply(params, pixels), tiles, time.perf_counter()))
        if len(running) > AHEAD:
            done, encoded = finish(done)
            yield from encoded
    while running:
        done, encoded = finish(done)
        yield from encoded
    yield from gather.rest()


class _Gather:
    """Sorts encoded tiles into slides."""

    def __init__(self, sources, counts):
        self.wanted = [len(source.yx) for source in sources]
        self.counts = counts
        self.parts = collections.defaultdict(list)
        self.seen = collections.Counter()
        self.next = 0

    def __call__(self, features, tiles) -> list[Encoded]:
        for slide in np.unique(tiles.slide[tiles.slide >= 0]):
            mine = tiles.slide == slide
            self.seen[int(slide)] += int(mine.sum())
            mine &= tiles.ok
            self.parts[int(slide)].append((features[mine], tiles.tile[mine]))
        return list(self._ready())

    def rest(self) -> list[Encoded]:
        """Slides without a tile after the last one that had any."""
        return list(self._ready())

    def _ready(self):
        while (
            self.next < len(self.wanted)
            and self.seen[self.next] == self.wanted[self.next]
        ):
            parts = self.parts.pop(self.next, [])
            x = [p[0] for p in parts] or [np.zeros((0, 0), np.float32)]
            kept = [p[1] for p in parts] or [np.zeros(0, np.int32)]
            reason = self.counts.reasons.get(self.next, "")
            kept = np.concatenate(kept)
            lost = self.wanted[self.next] - len(kept)
            yield Encoded(self.next, np.concatenate(x), kept, lost, reason)
            self.next += 1
