"""What a method is made of that scores every tile and keeps a few to learn from.

The scores are those of parameters as they were at the last renewal, which the state
carries, so that a resumed run keeps the same tiles.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wsi_jax.ops.crop_grid import CropGrid
from wsi_jax.training.supervised import supervised
from wsi_jax.types import Prediction


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
class TileScorer(Protocol):
    """Nets that score and judge, as pure functions.

    Attributes:
        cells: geometry of the tiles.
        renew: steps between two renewals of the parameters that score in training; 1
            where they are always those of the moment, as where none is ever trained.
        chunk: tiles scored at a time.
    """

    cells: CropGrid
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


class Learner:
    """The training step on tiles that were kept, and what scores them.

    Args:
        net: that scores and judges.
        tx: the optimiser.
        init: (key, batch) -> params.
        predict: (params, batch, key) -> Prediction.
    """

    def __init__(
        self, net: TileScorer, tx: optax.GradientTransformation, init, predict
    ):
        self.net, self.carries = net, net.renew > 1
        loss = lambda params, batch, key: net.loss(
            params, *batch.x, batch.target, jax.random.fold_in(key, 1)
        )
        self._supervised = supervised(init, loss, predict, tx)

    def init(self, key, batch):
        """A state, with the parameters that score where they are others."""
        state = self._supervised.init(key, batch)
        if not self.carries:
            return state
        scorer = jax.tree.map(jnp.copy, self.net.scorer(state.params))
        return state._replace(opt=Scoring(state.opt, scorer))

    def scorer(self, state):
        """The parameters that score in training."""
        return state.opt.scorer if self.carries else self.net.scorer(state.params)

    def candidates(self, state, mask, n) -> Candidates:
        """What is scored in this step."""
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


def anywhere(net: TileScorer, key, mask, n: int) -> Kept:
    """Tiles that are kept whatever they show, to begin with."""
    found = net.candidates(mask, key, n, train=False)
    # A number for each cell: however many candidates there may be, the same are kept.
    chance = jax.random.uniform(key, (len(mask), mask[0].size))
    return net.sift(jnp.take_along_axis(chance, found.index, 1), found)


def counts(found, kept, flops: tuple[int, int]) -> dict:
    """Tiles scored of each slide, and FLOPs of scoring them and judging the kept."""
    n = found.sum(1)
    return {
        "tiles": n,
        "flops": n.astype(np.float32) * flops[0]
        + kept.sum(1).astype(np.float32) * flops[1],
    }
