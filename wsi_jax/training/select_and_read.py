"""The contract of methods that select what to read, and their form on one device.

In turn: begin -> (score -> select) -> read -> step or prediction. All but reading are
pure functions. Who reads is one of two: `on_device` gathers from slides that lie on the
device, in one program; `select_and_read_from_disk` has threads read slides on disk.
Both train and predict alike, but for the rounding of float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from wsi_jax.ops.crop_grid import CropGrid, gather_crops
from wsi_jax.training.supervised import supervised
from wsi_jax.types import Method, Prediction, TrainState, padded


class Selection(NamedTuple):
    """Cells of each slide: candidates for reading, or those whose crops are read.

    Attributes:
        index: [b n], numbers of the cells.
        mask: [b n], False where fewer are selected.
        extra: what the method keeps of how they were selected; None for nothing.
        candidates: the tiles that were scored, from which these were selected; None
            where no tile is scored.
    """

    index: Any
    mask: Any
    extra: Any = None
    candidates: Any = None


class Flops(NamedTuple):
    """Floating-point operations of a prediction.

    Attributes:
        overview: to select from the overview of one slide.
        score: to score one tile.
        read: to classify by one crop that was read.
    """

    overview: int = 0
    score: int = 0
    read: int = 0


class Selective:
    """What is particular to a method that selects what to read, as pure functions.

    Methods derive from it; `score` and `select` only where tiles are scored.

    Attributes:
        lookahead: batches whose reading may begin before the one before is learnt from:
            0 or 1. The selection is then made by parameters one step old.
        in_state: whether a selection made ahead belongs to the state: not where it does
            not depend on parameters, and is the same at any time.
        renew: steps between two renewals of the view by which training selects; 1 where
            it is always that of the current parameters.
        chunk: tiles scored at a time; 0 where selecting takes no scores.
    """

    cells: CropGrid
    lookahead: int = 0
    in_state: bool = False
    renew: int = 1
    chunk: int = 0

    def init(self, key) -> Any:
        """Initial parameters."""

    def first(self, params, batch, key, n: int) -> Selection:
        """Crops to which the initial parameters are adapted."""
        return self.begin(self.view(params), batch, key, n, train=True)

    def init_on_crops(self, key, params, crops, magnification, mask) -> Any:
        """Initial parameters with pretrained weights and the statistics of crops."""

    def view(self, params) -> Any:
        """The part of the parameters that selecting needs."""

    def most_cells(self, mask: np.ndarray, train: bool) -> int:
        """Number of cells that `begin` selects, for the slide that has the most."""

    def begin(self, view, batch, key, n: int, train: bool) -> Selection:
        """The cells to read, or the candidates to score."""

    def score(self, view, tiles) -> Any:
        """Scores [n] of tiles [n s s 3], each by itself."""

    def select(self, candidates: Selection, scores) -> Selection:
        """The tiles to read, by the scores [b n] of candidates."""

    def loss(self, params, batch, selection: Selection, crops, keys) -> tuple:
        """Loss of each slide [b], and metrics, each [b]; `keys` are the slides' own."""

    def prediction(self, params, batch, selection: Selection, crops) -> Prediction:
        """The prediction, without counts."""

    def flops(self, params, batch, crop) -> Flops:
        """Arithmetic of a prediction, by the shapes of a batch of one slide and one
        crop [1 1 s s 3]."""


class SelectiveByTile(Selective):
    """A method whose candidates are all cells with tissue, row by row."""

    def most_cells(self, mask, train):
        """Rounded up to few numbers."""
        del train
        return min(padded(int(mask.sum((1, 2)).max()), 16), mask[0].size)

    def begin(self, view, batch, key, n, train):
        del view, key, train
        return first_cells(~batch.mask.reshape(len(batch.mask), -1), batch.mask, n)


def first_cells(order, mask, n: int) -> Selection:
    """The first n cells by an order [b k] of all cells that has tissue in front."""
    index = jnp.argsort(order, axis=1, stable=True)[:, :n].astype(jnp.int32)
    return Selection(index, jnp.arange(n)[None] < mask.sum((1, 2))[:, None])


def best_and_worst(candidates: Selection, scores, best: int, worst: int) -> Selection:
    """The highest-scored candidates, from the very best down, and the lowest-scored,
    from the very worst up; `extra` is the place [b n] of each among the candidates."""
    n = candidates.mask.sum(1, keepdims=True)
    order = jnp.where(candidates.mask, -scores, jnp.inf)
    order = jnp.argsort(order, axis=1, stable=True)
    rank = jnp.arange(best + worst)[None]
    last = n - 1 - (rank - best)
    # None comes twice: a tile among the best is not among the worst too.
    mask = rank < n
    rank = jnp.where(rank < best, rank, last)
    place = jnp.take_along_axis(order, jnp.clip(rank, 0, scores.shape[1] - 1), 1)
    index = jnp.take_along_axis(candidates.index, place, 1)
    return Selection(index, mask, place, candidates)


def attention_on_candidates(weights, selection: Selection):
    """The attention [b m] on tiles that `best_and_worst` selected, on all [b n]."""
    weights = jnp.where(selection.mask, weights, 0)
    none = jnp.zeros(selection.candidates.mask.shape, weights.dtype)
    add = lambda a, at, w: a.at[at].add(w)
    return jax.vmap(add)(none, selection.extra, weights)


class SelectiveState(NamedTuple):
    """State of the optimiser, and of selecting; part of every checkpoint.

    Attributes:
        view: by which training selects, where it is renewed now and then; else None.
        ahead: selection for the next batch, where one is made ahead; else None.
    """

    opt: Any
    view: Any = None
    ahead: Any = None


class Learner:
    """Initial state and training step, on crops that were selected and read.

    Args:
        read_first: (key, params, batch) -> selection and crops to which the initial
            parameters are adapted; None leaves them as they are, good for shapes.
    """

    def __init__(
        self,
        net: Selective,
        tx: optax.GradientTransformation,
        read_first: Callable | None = None,
    ):
        def init(key, batch):
            init_key, select_key, adapt_key = jax.random.split(key, 3)
            params = net.init(init_key)
            if not read_first:
                return params
            return read_first(params, batch, select_key, adapt_key)

        def loss(params, batch, keys):
            overviews, selection, crops = batch.x
            batch = batch._replace(x=overviews)
            return net.loss(params, batch, selection, crops, keys)

        self.net = net
        self._supervised = supervised(init, loss, None, tx)

    def init(self, key, batch) -> TrainState:
        """The initial state."""
        state = self._supervised.init(key, batch)
        view = None
        if self.net.renew > 1:
            view = jax.tree.map(jnp.copy, self.net.view(state.params))
        return state._replace(opt=SelectiveState(state.opt, view))

    def view(self, state: TrainState) -> Any:
        """By which training selects."""
        return self.net.view(state.params) if self.net.renew <= 1 else state.opt.view

    def step(self, state, batch, selection, crops, ahead=None):
        """(state, metrics) after a step on crops; `ahead` is kept in the state."""
        view = state.opt.view
        batch = batch._replace(x=(batch.x, selection, crops))
        inner = state._replace(opt=state.opt.opt)
        state, metrics = self._supervised.step(inner, batch)
        if self.net.renew > 1:
            due, new = state.step % self.net.renew == 0, self.net.view(state.params)
            view = jax.tree.map(lambda new, old: jnp.where(due, new, old), new, view)
        return state._replace(opt=SelectiveState(state.opt, view, ahead)), metrics


def counted_prediction(net: Selective, params, batch, selection, crops) -> Prediction:
    """The prediction of a method, with its counts of tiles and arithmetic."""
    prediction = net.prediction(params, batch, selection, crops)
    one = lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype)
    crop = jax.ShapeDtypeStruct((1, 1, *crops.shape[2:]), crops.dtype)
    flops = net.flops(params, jax.tree.map(one, batch), crop)
    tiles = read = selection.mask.sum(1)
    if selection.candidates:
        tiles = selection.candidates.mask.sum(1)
    total = float(flops.overview) + read.astype(jnp.float32) * float(flops.read)
    total += tiles.astype(jnp.float32) * float(flops.score)
    return prediction._replace(counts={"tiles": tiles, "flops": total})


def on_device(net: Selective, tx: optax.GradientTransformation) -> Method:
    """The method on slides that lie on the device: a step is one program."""

    def corners(batch, index):
        return net.cells.crop_corners(index, batch.mask.shape[1:])

    def read(batch, index):
        cut = lambda planes, background, magnification, yx: gather_crops(
            planes, background, magnification, yx, net.cells.crop_px
        )
        places = corners(batch, index)
        return jax.vmap(cut)(batch.x.planes, batch.x.background, *places)

    def most(batch, train):
        return net.most_cells(np.ones(batch.mask.shape, bool), train)

    def scores(view, batch, candidates):
        """A chunk of candidates at a time, of all slides at once."""
        b, n = candidates.index.shape
        width = min(n, max(1, net.chunk // b))
        wide = jnp.pad(candidates.index, [(0, 0), (0, -n % width)])

        def some(index):
            tiles = read(batch, index)
            return net.score(view, tiles.reshape(-1, *tiles.shape[2:])).reshape(b, -1)

        parts = jnp.moveaxis(wide.reshape(b, -1, width), 1, 0)
        return jnp.moveaxis(lax.map(some, parts), 0, 1).reshape(b, -1)[:, :n]

    def select(view, batch, key, train):
        selection = net.begin(view, batch, key, most(batch, train), train)
        if net.chunk:
            selection = net.select(selection, scores(view, batch, selection))
        return selection

    def read_first(params, batch, select_key, adapt_key):
        if not batch.x.planes:  # a batch without slides, for shapes
            return params
        chosen = net.first(params, batch, select_key, most(batch, train=False))
        magnification, _ = corners(batch, chosen.index)
        crops = read(batch, chosen.index)
        return net.init_on_crops(adapt_key, params, crops, magnification, chosen.mask)

    def step(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        selection = select(learner.view(state), batch, key, train=True)
        return learner.step(state, batch, selection, read(batch, selection.index))

    def predict(params, batch, key):
        selection = select(net.view(params), batch, key, train=False)
        return counted_prediction(
            net, params, batch, selection, read(batch, selection.index)
        )

    learner = Learner(net, tx, read_first)
    return Method(learner.init, step, predict)
