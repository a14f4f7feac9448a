"""Training and verdicts of a method that scores every tile and keeps a few.

Score all -> sift -> read what is kept -> learn. The scores are those of parameters as
they were at the last renewal, which the state carries, so that a resumed run keeps the
same tiles. Two forms, equal but for the rounding of float32: `sifting` reads slides on
disk, a few tiles at a time; `sifting_resident` is one program for slides that lie on
the device.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, PyTree, UInt32

from wsi_jax.ops.crops import Cells
from wsi_jax.train.compile import compile_phase
from wsi_jax.train.resident import reading
from wsi_jax.train.supervised import supervised
from wsi_jax.types import Method, Prediction


class Candidates(NamedTuple):
    """Tiles that are scored.

    Attributes:
        index: [b n], of their cells.
        mask: [b n], False where there are fewer.
    """

    index: Any
    mask: Any


class Kept(NamedTuple):
    """Tiles that are learnt from.

    Attributes:
        place: [b m], of each among the candidates.
        index: [b m], of its cell.
        mask: [b m], False where fewer are kept.
    """

    place: Any
    index: Any
    mask: Any


@runtime_checkable
class Sifter(Protocol):
    """Nets that score and judge, as pure functions.

    Attributes:
        cells: geometry of the tiles.
        renew: steps between two renewals of the parameters that score in training; 1
            where they are always those of the moment, as where none is ever trained.
        chunk: tiles scored at a time.
    """

    cells: Cells
    renew: int
    chunk: int

    def init(self, key) -> Any:
        """Parameters."""

    def begin(self, key, params, tiles, mask) -> Any:
        """Parameters that know what tiles are like."""

    def scorer(self, params) -> Any:
        """Those that score."""

    def score(self, scorer, tiles) -> Any:
        """Of tiles [n s s 3], [n]."""

    def count(self, mask, train: bool) -> int:
        """How many candidates the slide with the most of them has."""

    def most(self, shape, train: bool) -> int:
        """How many a slide of `shape` cells can have."""

    def candidates(self, mask, key, n: int, train: bool) -> Candidates:
        """What is scored: in prediction all tiles, row by row."""

    def sift(self, scores, candidates: Candidates) -> Kept:
        """What is kept."""

    def loss(self, params, kept: Kept, tiles, label, key) -> tuple:
        """Of each slide, and metrics."""

    def verdict(self, params, candidates: Candidates, kept: Kept, tiles) -> Prediction:
        """Without counts."""

    def flops(self, params, tile) -> tuple[int, int]:
        """Of scoring a tile of this shape, and of judging it."""


class Scoring(NamedTuple):
    """The optimiser's state, and the parameters that score."""

    opt: Any
    scorer: Any


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


class _Learner:
    """What both forms have in common: the step on tiles that were kept."""

    def __init__(self, net: Sifter, tx: optax.GradientTransformation, init, predict):
        self.net, self.carries = net, net.renew > 1
        loss = lambda params, batch, key: net.loss(
            params, *batch.x, batch.label, jax.random.fold_in(key, 1)
        )
        self._supervised = supervised(init, loss, predict, tx)

    def init(self, key, batch):
        state = self._supervised.init(key, batch)
        if not self.carries:
            return state
        scorer = jax.tree.map(jnp.copy, self.net.scorer(state.params))
        return state._replace(opt=Scoring(state.opt, scorer))

    def scorer(self, state):
        """The parameters that score in training."""
        return state.opt.scorer if self.carries else self.net.scorer(state.params)

    def candidates(self, state, mask, n):
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 0)
        return self.net.candidates(mask, key, n, train=True)

    def learn(self, state, batch):
        """`supervised`'s step, on a batch whose x is (kept, tiles)."""
        if not self.carries:
            return self._supervised.step(state, batch)
        old = state.opt.scorer
        state, metrics = self._supervised.step(state._replace(opt=state.opt.opt), batch)
        due = state.step % self.net.renew == 0
        new = self.net.scorer(state.params)
        scorer = jax.tree.map(lambda new, old: jnp.where(due, new, old), new, old)
        return state._replace(opt=Scoring(state.opt, scorer)), metrics


def anywhere(net: Sifter, key, mask, n: int) -> Kept:
    """Tiles that are kept whatever they show, to begin with."""
    found = net.candidates(mask, key, n, train=False)
    # A number for each cell: however many candidates there may be, the same are kept.
    chance = jax.random.uniform(key, (len(mask), mask[0].size))
    return net.sift(jnp.take_along_axis(chance, found.index, 1), found)


def sifting_resident(net: Sifter, tx: optax.GradientTransformation) -> Method:
    """The pure Method: one program a step.

    Args:
        net: that scores and judges.
        tx: the optimiser.
    """
    read = reading(net.cells)

    def tiles(batch, index):
        return read(batch, *net.cells.corners(index, batch.mask.shape[1:]))

    def most(batch, train):
        return net.most(batch.mask.shape[1:], train)

    def score(scorer, batch, found):
        """A chunk of candidates at a time, of all slides at once."""
        b, n = found.index.shape
        width = min(n, max(1, net.chunk // b))
        wide = jnp.pad(found.index, [(0, 0), (0, -n % width)])

        def some(index):
            seen = tiles(batch, index)
            return net.score(scorer, seen.reshape(-1, *seen.shape[2:])).reshape(b, -1)

        parts = jnp.moveaxis(wide.reshape(b, -1, width), 1, 0)
        return jnp.moveaxis(lax.map(some, parts), 0, 1).reshape(b, -1)[:, :n]

    def init(key, batch):
        keys = jax.random.split(key, 3)
        params = net.init(keys[0])
        if not batch.x.planes:  # to ask for their shapes
            return params
        kept = anywhere(
            net, keys[1], batch.mask, net.most(batch.mask.shape[1:], train=False)
        )
        return net.begin(keys[2], params, tiles(batch, kept.index), kept.mask)

    def step(state, batch):
        found = learner.candidates(
            state, batch.mask, net.most(batch.mask.shape[1:], train=True)
        )
        scores = score(learner.scorer(state), batch, found)
        kept = net.sift(scores, found)
        seen = kept, tiles(batch, kept.index)
        return learner.learn(state, batch._replace(x=seen))

    def predict(params, batch, key):
        found = net.candidates(
            batch.mask, key, net.most(batch.mask.shape[1:], train=False), train=False
        )
        kept = net.sift(score(net.scorer(params), batch, found), found)
        seen = tiles(batch, kept.index)
        said = net.verdict(params, found, kept, seen)
        tile = jax.ShapeDtypeStruct((1, *seen.shape[2:]), seen.dtype)
        return said._replace(
            counts=counts(found.mask, kept.mask, net.flops(params, tile))
        )

    learner = _Learner(net, tx, init, predict)
    return Method(learner.init, step, predict)


def counts(found, kept, flops: tuple[int, int]) -> dict:
    """Tiles scored of each slide, and FLOPs of scoring them and judging the kept."""
    n = found.sum(1)
    return {
        "tiles": n,
        "flops": n.astype(np.float32) * flops[0]
        + kept.sum(1).astype(np.float32) * flops[1],
    }


def sifting(net: Sifter, tx: optax.GradientTransformation) -> Method:
    """The staged Method of a net on slides that are read as they are scored.

    Args:
        net: that scores and judges.
        tx: the optimiser.
    """
    staged = _Sifting(net, tx)
    return Method(staged.init, staged.step, staged.predict, staged=True)


class _Sifting:
    def __init__(self, net, tx):
        self.net, self._flops = net, {}
        self._learner = _Learner(net, tx, self._begin, self.predict)
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
        self._verdict, self._begun = (
            compile_phase(net.verdict),
            compile_phase(net.begin),
        )

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

    def _read(self, batch, chosen, mask=None):
        which, yx = self._places(chosen.index, shape=batch.mask.shape[1:])
        mask = chosen.mask if mask is None else mask
        return batch.x.read(*jax.device_get((which, yx, mask)))

    def _scored(self, scorer, batch, found, train):
        """Scores [b n] of candidates; none is scored twice by the same parameters."""
        there = np.array(found.mask)  # to write to
        scores = np.zeros(there.shape, np.float32)
        every = there.sum(1) == np.asarray(batch.mask).sum((1, 2))
        known = self._known_by(scorer, train)
        for i, slide in enumerate(batch.x.slides):
            if every[i] and slide in known:
                scores[i, there[i]] = known[slide]
                there[i] = False
        self._fill(scores, scorer, batch, found, there)
        for i, slide in enumerate(batch.x.slides):
            if every[i]:
                known[slide] = scores[i, np.asarray(found.mask[i])]
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
        width = max(1, chunk // int(wanted.any(1).sum()))
        parts = [np.s_[:, i : i + width] for i in range(0, n, width)]
        parts = [part for part in parts if wanted[part].any()]
        index = np.asarray(found.index)

        def read(part):
            some = Candidates(index[part], wanted[part])
            return self._read(batch, some)

        coming, said = read(parts[0]), []
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            tiles = coming.result()[wanted[part]]
            coming = after and read(after)
            wide = [(0, chunk - len(tiles))] + [(0, 0)] * 3
            said.append(self._score(scorer, np.pad(tiles, wide)))
        for part, values in zip(parts, jax.device_get(said), strict=True):
            here = wanted[part]
            scores[part][here] = values[: here.sum()]
