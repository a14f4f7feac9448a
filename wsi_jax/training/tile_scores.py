"""Scores of tiles of slides on disk, chunk by chunk, none twice by the same scorer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree, UInt32

from wsi_jax.training.compile import compile_phase, split
from wsi_jax.training.mesh import on_local_devices, own_rows, rows_here, split_over
from wsi_jax.training.select_and_read import Selection, Selective
from wsi_jax.types import Bag


class Placed(NamedTuple):
    """A batch in two places.

    Attributes:
        host: in host memory: the overviews of this process's slides, all else of all.
        devices: split over the devices by slide.
        slide: numbers [b] of this process's slides.
    """

    host: Bag
    devices: Bag
    slide: np.ndarray

    @classmethod
    def of(cls, batch: Bag, mesh: Mesh) -> "Placed":
        """A batch in host memory, on devices too."""
        rows = own_rows(mesh, len(batch.weight))
        own = lambda a: np.asarray(a)[rows]
        x = batch.x._replace(slide=own(batch.x.slide))
        local = Bag(x, *map(own, batch[1:]))
        return cls(batch, split(local, mesh), x.slide)


class Scores:
    """Scores tiles, and keeps those of whole slides until the view is another one.

    Each process scores the tiles of its own slides, on its own devices.

    Args:
        read: (batch, index [b n], mask [b n]) -> a future of tiles of own slides.

    Attributes:
        score: compiled; (view, tiles [n s s 3]) -> scores [n].
    """

    def __init__(self, net: Selective, mesh: Mesh, read: Callable[..., Any]):
        self._mesh, self._read, self._chunk = mesh, read, net.chunk
        self._version, self._kept = b"", {}
        self._local = mesh.local_mesh
        self.score = compile_phase(net.score, out=split_over(self._local))
        self._print = compile_phase(fingerprint)

    def __call__(self, view: PyTree, batch: Placed, candidates: Selection) -> Array:
        """Scores [b n] of candidates; none is scored twice by the same view."""
        own = rows_here((candidates.index, candidates.mask), self._mesh)
        return split(self._of_own_slides(view, batch, *own), self._mesh)

    def _of_own_slides(self, view, batch, index, mask):
        """Scores of this process's rows."""
        version = np.asarray(self._print(view)).tobytes()
        if version != self._version:
            self._version, self._kept = version, {}
        wanted = np.array(mask)  # to write to
        scores = np.zeros(wanted.shape, np.float32)
        slides = batch.slide.tolist()
        cells = batch.host.mask[own_rows(self._mesh, len(batch.host.mask))]
        whole = wanted.sum(1) == cells.sum((1, 2))
        for i, slide in enumerate(slides):
            if whole[i] and (slide in self._kept or slide in slides[:i]):
                wanted[i] = False
        view = on_local_devices(view, self._mesh)
        self._fill(scores, view, batch, index, wanted)
        for i, slide in enumerate(slides):
            if whole[i]:  # whatever the order of its candidates
                tiles = np.flatnonzero(mask[i])
                tiles = tiles[np.argsort(index[i, tiles])]
                scores[i, tiles] = self._kept.setdefault(slide, scores[i, tiles])
        return scores

    def _fill(self, scores, view, batch, index, wanted):
        """Scores a chunk while the next one is read; memory is that of two."""
        chunk, n = self._chunk, scores.shape[1]
        if not wanted.any():
            return
        rows = int(wanted.any(1).sum())
        width, most = max(1, chunk // rows), max(chunk, rows)
        most += -most % self._local.size
        parts = [np.s_[:, i : i + width] for i in range(0, n, width)]
        parts = [part for part in parts if wanted[part].any()]

        def read(part):
            return self._read(batch, index[part], wanted[part])

        coming, results = read(parts[0]), []
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            tiles = coming.result()[wanted[part]]
            coming = after and read(after)
            wide = [(0, most - len(tiles))] + [(0, 0)] * 3
            tiles = jax.device_put(np.pad(tiles, wide), split_over(self._local))
            results.append(self.score(view, tiles))
        for part, values in zip(parts, jax.device_get(results), strict=True):
            here = wanted[part]
            scores[part][here] = values[: here.sum()]


def fingerprint(tree: PyTree) -> UInt32[Array, "2"]:
    """64 bits that change when a bit of a tree does, but by a rare chance."""
    sums = jnp.zeros(2, jnp.uint32)
    factors = jnp.array([2654435761, 2246822519], jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        words = lax.bitcast_convert_type(leaf, jnp.uint8).reshape(-1).astype(jnp.uint32)
        at = jnp.arange(1, len(words) + 1, dtype=jnp.uint32)
        mixed = (at[None] * factors[:, None]) ^ words[None] * jnp.uint32(0x9E3779B1)
        mixed = (mixed ^ mixed >> 15) * jnp.uint32(0x85EBCA6B)
        sums = sums * jnp.uint32(31) + (mixed ^ mixed >> 13).sum(1, dtype=jnp.uint32)
    return sums
