"""Training and verdicts of a method that scores all tiles of slides on disk.

In between it leaves the device: score all, a few tiles at a time -> sift -> read what
is kept -> learn. While one batch is learnt from, the tiles of the next are read.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, PyTree, UInt32

from wsi_jax.training.compile import compile_phase
from wsi_jax.training.tile_scorer import (
    Candidates,
    Learner,
    TileScorer,
    anywhere,
    counts,
)
from wsi_jax.types import Method


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


def sifting(net: TileScorer, tx: optax.GradientTransformation) -> Method:
    """The staged Method of a net on slides that are read as they are scored.

    Args:
        net: that scores and judges.
        tx: the optimiser.
    """
    staged = _Sifting(net, tx)
    return Method(staged.init, staged.step, staged.predict, precompiled=True)


class _Sifting:
    def __init__(self, net, tx):
        self.net, self._flops = net, {}
        self._learner = Learner(net, tx, self._begin, self.predict)
        # Scores by slide, in training and for verdicts, and whose scores they are.
        self._known = {True: (b"", {}), False: (b"", {})}
        self._next = None  # whose batch comes next, and what is kept of it
        self._learn = compile_phase(self._learner.learn, donate=(0,))
        self._drawn = compile_phase(self._learner.candidates, static=("n",))
        self._all = compile_phase(
            lambda mask, key, n: net.candidates(mask, key, n, train=False),
            static=("n",),
        )
        self._score, self._sift = compile_phase(net.score), compile_phase(net.sift)
        self._places = compile_phase(net.cells.corners, static=("shape",))
        self._print = compile_phase(fingerprint)
        self._verdict = compile_phase(net.verdict)
        self._begun = compile_phase(net.begin)

    def init(self, key, batch):
        return self._learner.init(key, batch)

    def step(self, state, batch):
        ours, self._next = self._next, None
        if not ours or ours[0] is not batch.x.overview:
            ours = batch.x.overview, *self._kept(state, batch)
        _, kept, tiles = ours
        state, metrics = self._learn(state, batch._replace(x=(kept, tiles.result())))
        # The next tiles are read while the device learns from these.
        if (after := batch.x.after) is not None:
            self._next = after.x.overview, *self._kept(state, after)
        return state, metrics

    def predict(self, params, batch, key):
        n = self.net.count(batch.mask, train=False)
        found = self._all(batch.mask, key, n=n)
        scores = self._scored(self.net.scorer(params), batch, found, train=False)
        kept = self._sift(scores, found)
        tiles = self._read(batch, kept).result()
        said = self._verdict(params, found, kept, tiles)
        if tiles.shape[2:] not in self._flops:
            tile = jax.ShapeDtypeStruct((1, *tiles.shape[2:]), tiles.dtype)
            self._flops[tiles.shape[2:]] = self.net.flops(params, tile)
        masks = np.asarray(found.mask), np.asarray(kept.mask)
        return said._replace(counts=counts(*masks, self._flops[tiles.shape[2:]]))

    def _begin(self, key, batch):
        keys = jax.random.split(key, 3)
        params = self.net.init(keys[0])
        if batch.x.read is None:  # to ask for their shapes
            return params
        n = self.net.count(batch.mask, train=False)
        kept = anywhere(self.net, keys[1], batch.mask, n)
        tiles = self._read(batch, kept).result()
        return self._begun(keys[2], params, tiles, kept.mask)

    def _kept(self, state, batch):
        n = self.net.count(batch.mask, train=True)
        found = self._drawn(state, batch.mask, n=n)
        scores = self._scored(self._learner.scorer(state), batch, found, train=True)
        kept = self._sift(scores, found)
        return kept, self._read(batch, kept)

    def _read(self, batch, chosen):
        """Begins to read; only indices leave the device."""
        which, yx = self._places(chosen.index, shape=batch.mask.shape[1:])
        return batch.x.read(*jax.device_get((which, yx, chosen.mask)))

    def _scored(self, scorer, batch, found, train):
        """Scores [b n] of candidates; none is scored twice by the same parameters."""
        there = np.array(found.mask)  # to write to
        scores = np.zeros(there.shape, np.float32)
        every = there.sum(1) == np.asarray(batch.mask).sum((1, 2))
        known = self._known_by(scorer, train)
        for i, slide in enumerate(batch.x.slides):
            if every[i] and (slide in known or slide in batch.x.slides[:i]):
                there[i] = False
        self._fill(scores, scorer, batch, found, there)
        for i, slide in enumerate(batch.x.slides):
            if every[i]:
                mine = np.asarray(found.mask[i])
                scores[i, mine] = known.setdefault(slide, scores[i, mine])
        return scores

    def _known_by(self, scorer, train):
        now = np.asarray(self._print(scorer)).tobytes()
        if self._known[train][0] != now:
            self._known[train] = now, {}
        return self._known[train][1]

    def _fill(self, scores, scorer, batch, found, wanted):
        """Scores a chunk while the next one is read; memory is that of two."""
        chunk, n = self.net.chunk, scores.shape[1]
        if not wanted.any():
            return
        rows = int(wanted.any(1).sum())
        width, most = max(1, chunk // rows), max(chunk, rows)
        parts = [np.s_[:, i : i + width] for i in range(0, n, width)]
        parts = [part for part in parts if wanted[part].any()]
        index = np.asarray(found.index)

        def read(part):
            return self._read(batch, Candidates(index[part], wanted[part]))

        coming, said = read(parts[0]), []
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            tiles = coming.result()[wanted[part]]
            coming = after and read(after)
            wide = [(0, most - len(tiles))] + [(0, 0)] * 3
            said.append(self._score(scorer, np.pad(tiles, wide)))
        for part, values in zip(parts, jax.device_get(said), strict=True):
            here = wanted[part]
            scores[part][here] = values[: here.sum()]
