"""One slide as a trained method takes it: features, at two resolutions, or pixels."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from wsi_jax.data.crop_reader import CropReader
from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.data.tiles import Reading, TileCounts, TileSource
from wsi_jax.evals.cost import Meter
from wsi_jax.run.encode import Encoded, encode
from wsi_jax.run.tiling import TiledSlide, Tiling, view
from wsi_jax.slides.grid import Grid, children
from wsi_jax.slides.slide import SlideError
from wsi_jax.training.compile import compile_encoder, replicate, split
from wsi_jax.types import Bag, Looks, Takes, Zooms, bucket


class Seen(NamedTuple):
    """A slide, ready for a method.

    Attributes:
        bag: of this slide alone.
        kept: which tiles of the slide are in it.
        note: what of the slide could not be read, or "".
        view: what the method reads the slide by; None where all has been read.
    """

    bag: Bag
    kept: np.ndarray
    note: str = ""
    view: StreamedSlide | None = None


class FeatureInput:
    """Features of its tiles.

    Args:
        tiling: of the run.
        method: that was trained.
        mesh: of one device.
    """

    def __init__(self, tiling: Tiling, method: Any, mesh: Mesh):
        self._tiling, self._method, self._mesh = tiling, method, mesh
        self._encoder = replicate(tiling.encoder.params(), mesh)
        self._apply = compile_encoder(tiling.encoder.make().apply, mesh)

    def nothing(self, dim: int) -> Bag:
        """A bag of one tile, for its shapes; `dim` features to a tile."""
        return padded_bag(np.zeros((1, dim), np.float32), 1)

    def see(
        self, found: TiledSlide, batch: int, reading: Reading, meter: Meter
    ) -> Seen:
        """The slide, of which all is read that is known to be wanted.

        Args:
            found: the tiled slide.
            batch: tiles encoded at a time.
            reading: threads and buffers.
            meter: is charged.

        Raises:
            SlideError: too much of it cannot be read.
        """
        one = self._encode(found, found.yx, self._tiling.grid, batch, reading, meter)
        meter.add(slides=1)
        return Seen(self._bag(one.x), one.kept, one.note())

    def _bag(self, x):
        """As on disk in training: float16, padded to a bucket."""
        half = jax.tree.map(lambda a: a.astype(np.float16), x)
        n = len(jax.tree.leaves(x)[0])
        return split(padded_bag(half, bucket(n, 256)), self._mesh)

    def _encode(self, found, yx, grid: Grid, batch, reading, meter) -> Encoded:
        """Features of some tiles of a slide; refuses it where too few could be read."""
        counts = TileCounts()
        (encoded,) = encode(
            [TileSource(found.row.path, found.row.mpp, yx)],
            grid,
            self._apply,
            params=self._encoder,
            mesh=self._mesh,
            batch=batch,
            reading=reading,
            meter=meter,
            counts=counts,
        )
        if refusal := encoded.refusal(reading.max_unreadable):
            raise SlideError(refusal)
        meter.add(tiles=counts.tiles, bytes_decoded=counts.decoded_bytes)
        return encoded


class ZoomInput(FeatureInput):
    """Features of its tiles, and of the children of each."""

    def nothing(self, dim):
        row = np.zeros((1, dim), np.float32)
        k = self._method.children
        return padded_bag(Zooms(row, row[:, None].repeat(k * k, 1)), 1)

    def see(self, found, batch, reading, meter):
        grid, k = self._tiling.grid, self._method.children
        finer = dataclasses.replace(grid, mpp=grid.mpp / k)
        below = children(found.yx, grid.size_px, k)
        low = self._encode(found, found.yx, grid, batch, reading, meter)
        high = self._encode(found, below, finer, batch, reading, meter)
        meter.add(slides=1)
        row = np.full(len(below), -1)
        row[high.kept] = np.arange(len(high.kept))
        row = row.reshape(-1, k * k)[low.kept]
        whole = (row >= 0).all(1)
        if not whole.any():
            raise SlideError(f"{high.note()}; no tile of which all children were read")
        bag = self._bag(Zooms(low.x[whole], high.x[row[whole]]))
        note = "; ".join(filter(None, (low.note(), high.note())))
        return Seen(bag, low.kept[whole], note)


class SlideInput:
    """The slide itself, nothing of it read yet; arguments as of `FeatureInput`."""

    def __init__(self, tiling: Tiling, method: Any, mesh: Mesh):
        del mesh
        self._tiling, self._method = tiling, method

    def nothing(self, dim):
        return padded_bag(np.zeros((1, dim), np.float32), 1)

    def see(self, found, batch, reading, meter):
        del batch, meter
        seen = view(found, self._tiling.grid, reading)
        bag = Bag((seen,), None, np.zeros(1, np.int32), np.ones(1, np.float32))
        return Seen(bag, np.arange(len(found.yx)), view=seen)


class CropInput(SlideInput):
    """Its overview, to be read on where the method wants it."""

    def nothing(self, dim):
        side = self._tiling.grid.size_px
        one = Looks(np.zeros((1, side, side, 3), np.uint8), np.zeros((1, 3)))
        return super().nothing(dim)._replace(x=one, mask=np.ones((1, 1, 1), bool))

    def see(self, found, batch, reading, meter):
        del batch, meter
        method, grid = self._method, self._tiling.grid
        reader = CropReader(
            method.reads(),
            method.cells(grid.mpp, grid.size_px).crop_px,
            overviews=method.overviews,
            resident=method.resident,
            threads=reading.threads,
            all_tiles=method.all_tiles,
        )
        seen = view(found, grid, reading)
        bag = reader.bag([seen], np.zeros(1, np.int32), np.ones(1, np.float32))
        return Seen(bag, np.arange(len(found.yx)), view=seen)


INPUTS = {
    Takes.features: FeatureInput,
    Takes.zooms: ZoomInput,
    Takes.slides: SlideInput,
    Takes.looks: CropInput,
}


def padded_bag(x: Any, length: int) -> Bag:
    """One slide's features, an array or several, as a padded bag."""
    n = len(jax.tree.leaves(x)[0])
    pad = lambda a: np.pad(a, [(0, length - n)] + [(0, 0)] * (a.ndim - 1))[None]
    mask = np.arange(length) < n
    label, weight = np.zeros(1, np.int32), np.ones(1, np.float32)
    return Bag(jax.tree.map(pad, x), mask[None], label, weight)
