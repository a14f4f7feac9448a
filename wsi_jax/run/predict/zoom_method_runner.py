"""A trained method that zooms, run on slides: it reads only the tiles it chooses."""

import concurrent.futures
import threading
from collections.abc import Sequence
from typing import Any

import einops
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int, UInt8

from wsi_jax.data.order import filled_up
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.run.extract.encode import CompiledEncoder, Encoded, encode_slides
from wsi_jax.run.predict.method_runner import SlideOutput
from wsi_jax.run.tiling import TiledSlide, Tiling
from wsi_jax.slides.slide import Slide, SlideError, open_slide
from wsi_jax.training.compile import compile_phase, split
from wsi_jax.types import Rounds, bucket


class ZoomMethodRunner:
    """Zooms into several slides at once, so that the encoder has full batches.

    Attributes:
        grouped: whether slides are faster together than one by one.
        params: parameters of the method.

    Args:
        tiling: tiling at low resolution, with the encoder.
        k: children to a side of a tile.
        rounds: the method's prediction in rounds.
        params: as above.
        mesh: devices that encode tiles; the first does all else.
    """

    grouped = True

    def __init__(self, tiling: Tiling, k: int, rounds: Rounds, params: Any, mesh: Mesh):
        self._tiling, self._k, self.params, self._mesh = tiling, k, params, mesh
        self._rounds = Rounds(*map(compile_phase, rounds))
        self._encoder = CompiledEncoder(tiling.encoder, mesh)

    def __call__(
        self, tiled: Sequence[TiledSlide], batch: int, reading: Reading, meter: Meter
    ) -> list[SlideOutput | SlideError]:
        """The output for each slide, or why there is none.

        Args:
            tiled: slides with tiles.
            batch: tiles encoded at a time at low resolution.
            reading: threads, and the share of a slide that may be unreadable.
            meter: is charged.
        """
        low = encode_slides(
            tiled, [one.yx for one in tiled], self._tiling.grid, self._encoder,
            batch=batch, reading=reading, meter=meter,
        )  # fmt: skip
        refusals = [one.refusal(reading.max_unreadable) for one in low]
        state = self._rounds.begin(self.params, *_padded(low, refusals))
        places = [s.yx[one.kept] for s, one in zip(tiled, low, strict=True)]
        orders = []
        with Children(tiled, places, self._tiling, self._k, reading.threads) as below:
            while True:
                tiles, wanted = jax.device_get(self._rounds.request(self.params, state))
                tile, live = tiles[:, 0], wanted[:, 0]
                if not live.any():
                    break
                features = self._encode(below.read(tile, live))
                state = self._rounds.absorb(self.params, state, tile, features)
                # The device works on these meanwhile.
                below.ahead(tiles[:, 1:], wanted[:, 1:])
                orders.append(np.where(live, tile, -1))
        meter.add(
            slides=len(tiled), tiles=below.tiles, bytes_decoded=below.bytes_decoded
        )
        logits, attention = jax.device_get(self._rounds.finish(self.params, state))
        # Where all slides are refused, none is zoomed into.
        order = np.array(orders, np.int32).reshape(-1, len(low)).T
        outputs = []
        for i, one in enumerate(low):
            if refusal := refusals[i] or below.reasons.get(i, ""):
                outputs.append(SlideError(refusal))
                continue
            n, zooms = len(one.kept), order[i][order[i] >= 0]
            outputs.append(
                SlideOutput(
                    logits[i], attention[i, :n], one.kept, one.unreadable_note(), zooms
                )
            )
        return outputs

    def _encode(self, pixels):
        """Features [b k*k d] of children [b k*k s s 3], as on disk in training."""
        flat = pixels.reshape(-1, *pixels.shape[2:])
        n = len(flat)
        features = self._encoder(split(filled_up(flat, self._mesh.size), self._mesh))
        if self._mesh.size > 1:
            features = jax.device_get(features)[:n]
        return features.astype(np.float16).reshape(*pixels.shape[:2], -1)


class Children:
    """Reads the children of tiles, in threads; of a tile all by one read, once.

    Attributes:
        tiles: children read, also those that turned out not to be wanted.
        bytes_decoded: bytes of pixels decoded, known once the block is left.
        reasons: why a tile could not be read, by index of its slide.
    """

    def __init__(
        self,
        tiled: Sequence[TiledSlide],
        yx: Sequence[np.ndarray],
        tiling: Tiling,
        k: int,
        threads: int,
    ):
        """Opens nothing yet.

        Args:
            tiled: the slides.
            yx: corners of their tiles [n 2], in pixels at the grid's mpp.
            tiling: tiling at low resolution.
            k: children to a side of a tile.
            threads: threads that read.
        """
        self._tiled, self._yx, self._k = tiled, yx, k
        self._side, self._mpp = tiling.grid.size_px, tiling.grid.mpp / k
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self._running: dict[tuple[int, int], concurrent.futures.Future] = {}
        self._slides: dict[int, Slide] = {}
        self._lock = threading.Lock()
        self.tiles, self.bytes_decoded = 0, 0
        self.reasons: dict[int, str] = {}

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)
        for slide in self._slides.values():
            self.bytes_decoded += slide.bytes_decoded
            slide.close()

    def read(
        self, tiles: Int[np.ndarray, " b"], live: Bool[np.ndarray, " b"]
    ) -> UInt8[np.ndarray, "b k s s 3"]:
        """The children of a tile of each live slide, row by row; zeros for others."""
        shape = len(tiles), self._k**2, self._side, self._side, 3
        out = np.zeros(shape, np.uint8)
        wanted = [(int(i), int(tiles[i])) for i in np.flatnonzero(live)]
        for one in wanted:
            self._begin(*one)
        for i, tile in wanted:
            try:
                out[i] = self._running.pop((i, tile)).result()
            except SlideError as error:
                self.reasons.setdefault(i, str(error))
        return out

    def ahead(
        self, tiles: Int[np.ndarray, "b m"], wanted: Bool[np.ndarray, "b m"]
    ) -> None:
        """Begins to read what is likely to be asked for next."""
        for i, j in np.argwhere(wanted):
            self._begin(int(i), int(tiles[i, j]))

    def _begin(self, i, tile):
        """Has the children of a tile read, unless they are already."""
        if (i, tile) not in self._running:
            self.tiles += self._k**2
            self._running[i, tile] = self._pool.submit(self._read, i, tile)

    def _read(self, i, tile):
        with self._lock:
            if i not in self._slides:
                row = self._tiled[i].row
                self._slides[i] = open_slide(row.path, row.mpp)
        at, side = self._yx[i][tile] * self._k, self._side * self._k
        pixels = self._slides[i].read(at, side, self._mpp)
        pattern = "(i y) (j x) c -> (i j) y x c"
        return einops.rearrange(pixels, pattern, i=self._k, j=self._k)


def _padded(low: Sequence[Encoded], refusals: Sequence[str]):
    """Features [b n d] of slides, and which of them count; of refused ones none."""
    n = bucket(max(1, *(len(one.kept) for one in low)), 64)
    x = np.zeros((len(low), n, max(one.x.shape[-1] for one in low)), np.float16)
    mask = np.zeros(x.shape[:2], bool)
    for i, (one, refusal) in enumerate(zip(low, refusals, strict=True)):
        if not refusal:
            x[i, : len(one.kept)], mask[i, : len(one.kept)] = one.x, True
    return x, mask
