"""Methods that select what to read, on slides on disk: the driver reads between rounds.

While the device learns from one batch, threads read the crops of the next. What was
selected for it is part of the state, so that a resumed training reads the same crops.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, PyTree, UInt32

from wsi_jax.training.compile import compile_phase
from wsi_jax.training.select_and_read import (
    Learner,
    Selection,
    Selective,
    counted_prediction,
)
from wsi_jax.types import Bag, Method, Prediction, TrainState


def in_rounds(net: Selective, tx: optax.GradientTransformation) -> Method:
    """The method on slides on disk, whose crops a driver reads as they are selected."""
    driver = functools.partial(Driver, net, tx)
    return Method(Learner(net, tx).init, None, None, driver=driver)


class Driver:
    """Runs a method whose crops are read between its compiled functions.

    Batches hold `Overviews` in host memory, with the numbers of their slides.

    Args:
        read: reads crops; as `Method.driver` has it.

    Attributes:
        begin, select: compiled; the cells to read, or the candidates to score; of these
            the ones to read.
        scores: in training (True) and in predictions, with the compiled `score`.
        learn, predict_on_crops: compiled; the step and the prediction on crops.
    """

    def __init__(
        self, net: Selective, tx: optax.GradientTransformation, read: Callable
    ):
        self.net, self._reader = net, read
        self._learner = Learner(net, tx, self._read_first)
        # In training others select than in predictions, and each keeps its scores.
        self.scores = {True: Scores(self, net), False: Scores(self, net)}
        self._first = compile_phase(net.first, static=("n",))
        self._init_on_crops = compile_phase(net.init_on_crops)
        self.begin = compile_phase(net.begin, static=("n", "train"))
        self.select = compile_phase(net.select)
        self._corners = compile_phase(net.cells.crop_corners, static=("shape",))
        self.learn = compile_phase(self._learner.step, donate=(0,))
        self.predict_on_crops = compile_phase(
            functools.partial(counted_prediction, net)
        )
        self._fold = compile_phase(jax.random.fold_in)

    def init(self, key, batch: Bag) -> TrainState:
        """The initial state; reads crops of the first batch."""
        state = self._learner.init(key, batch)
        if not self.net.in_state:
            return state
        ahead = self._select_to_learn(state, batch, 0)
        return state._replace(opt=state.opt._replace(ahead=ahead))

    def steps(
        self, state: TrainState, batches: Iterable[Bag]
    ) -> Iterator[tuple[TrainState, dict[str, Array]]]:
        """(state, metrics) after each batch; the state given is donated.

        Raises:
            ValueError: the batches end, though the state is to hold the selection for
                the next one.
        """
        net, batches = self.net, iter(batches)
        if (batch := next(batches, None)) is None:
            return
        selection = state.opt.ahead
        if selection is None:
            selection = self._select_to_learn(state, batch, 0)
        reading = self.read(batch, selection)
        for after in itertools.chain(batches, [None]):
            ahead = coming = None
            if after is None and net.in_state:
                raise ValueError(
                    "the batches have ended: what is read of the next one is selected "
                    "before this one is learnt from"
                )
            if after is not None and net.lookahead:
                ahead = self._select_to_learn(state, after, 1)
                coming = self.read(after, ahead)
            kept = ahead if net.in_state else None
            crops = reading.result()
            state, metrics = self.learn(state, batch, selection, crops, kept)
            if after is not None and not net.lookahead:
                # The crops are read while the device still learns from these.
                ahead = self._select_to_learn(state, after, 0)
                coming = self.read(after, ahead)
            yield state, metrics
            batch, selection, reading = after, ahead, coming

    def predict(self, params, batch: Bag, key) -> Prediction:
        """The prediction on one batch."""
        return next(self.predictions(params, [batch], key))

    def predictions(self, params, batches: Iterable[Bag], key) -> Iterator[Prediction]:
        """The prediction on each batch; the next one's crops are read meanwhile."""
        view, waiting = self.net.view(params), None
        for batch in batches:
            selection = self._select(view, batch, key, train=False)
            coming = batch, selection, self.read(batch, selection)
            if waiting:
                yield self._predicted(params, *waiting)
            waiting = coming
        if waiting:
            yield self._predicted(params, *waiting)

    def read(self, batch: Bag, selection: Selection) -> Any:
        """A future of the selected crops; only indices leave the device."""
        places = self._corners(selection.index, shape=batch.mask.shape[1:])
        return self._reader(batch.x.slide, *jax.device_get((*places, selection.mask)))

    def _read_first(self, params, batch, select_key, adapt_key):
        n = self.net.most_cells(batch.mask, train=False)
        selection = self._first(params, batch, select_key, n=n)
        magnification, _ = self._corners(selection.index, shape=batch.mask.shape[1:])
        crops = self.read(batch, selection).result()
        return self._init_on_crops(
            adapt_key, params, crops, magnification, selection.mask
        )

    def _select_to_learn(self, state, batch, later: int):
        """What is read of a batch that is learnt from `later` steps from now."""
        key = self._fold(state.key, state.step + later)
        return self._select(self._learner.view(state), batch, key, train=True)

    def _select(self, view, batch, key, train) -> Selection:
        n = self.net.most_cells(batch.mask, train)
        selection = self.begin(view, batch, key, n=n, train=train)
        if not self.net.chunk:
            return selection
        return self.select(selection, self.scores[train](view, batch, selection))

    def _predicted(self, params, batch, selection, reading):
        return self.predict_on_crops(params, batch, selection, reading.result())


class Scores:
    """Scores tiles, and keeps those of whole slides until the view is another one.

    Attributes:
        score: compiled; (view, tiles [n s s 3]) -> scores [n].
    """

    def __init__(self, driver: Driver, net: Selective):
        self._driver, self._chunk = driver, net.chunk
        self._version, self._kept = b"", {}
        self.score, self._print = compile_phase(net.score), compile_phase(fingerprint)

    def __call__(self, view: PyTree, batch: Bag, candidates: Selection) -> np.ndarray:
        """Scores [b n] of candidates; none is scored twice by the same view."""
        version = np.asarray(self._print(view)).tobytes()
        if version != self._version:
            self._version, self._kept = version, {}
        wanted = np.array(candidates.mask)  # to write to
        scores = np.zeros(wanted.shape, np.float32)
        slides = np.asarray(batch.x.slide).tolist()
        whole = wanted.sum(1) == np.asarray(batch.mask).sum((1, 2))
        for i, slide in enumerate(slides):
            if whole[i] and (slide in self._kept or slide in slides[:i]):
                wanted[i] = False
        self._fill(scores, view, batch, candidates, wanted)
        index = np.asarray(candidates.index)
        for i, slide in enumerate(slides):
            if whole[i]:  # whatever the order of its candidates
                tiles = np.flatnonzero(candidates.mask[i])
                tiles = tiles[np.argsort(index[i, tiles])]
                scores[i, tiles] = self._kept.setdefault(slide, scores[i, tiles])
        return scores

    def _fill(self, scores, view, batch, candidates, wanted):
        """Scores a chunk while the next one is read; memory is that of two."""
        chunk, n = self._chunk, scores.shape[1]
        if not wanted.any():
            return
        rows = int(wanted.any(1).sum())
        width, most = max(1, chunk // rows), max(chunk, rows)
        parts = [np.s_[:, i : i + width] for i in range(0, n, width)]
        parts = [part for part in parts if wanted[part].any()]
        index = np.asarray(candidates.index)

        def read(part):
            return self._driver.read(batch, Selection(index[part], wanted[part]))

        coming, results = read(parts[0]), []
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            tiles = coming.result()[wanted[part]]
            coming = after and read(after)
            wide = [(0, most - len(tiles))] + [(0, 0)] * 3
            results.append(self.score(view, np.pad(tiles, wide)))
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
