"""Methods that select what to read, on slides on disk: the driver reads between rounds.

While the devices learn from one batch, threads read the crops of the next. What was
selected for it is part of the state, so that a resumed training reads the same crops.

A batch is split over devices by slide, and each process reads its own slides.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from wsi_jax.training.compile import (
    compile_phase,
    replicate,
    split,
    state_shardings,
)
from wsi_jax.training.mesh import (
    rows_here,
    share,
    split_over,
    whole_on,
)
from wsi_jax.training.processes import meet
from wsi_jax.training.select_and_read import (
    Learner,
    Selection,
    Selective,
    counted_prediction,
)
from wsi_jax.training.tile_scores import Placed, Scores
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
        mesh: devices of all processes.
        spread: whether the optimiser's state is divided among them.

    Attributes:
        begin, select: compiled; the cells to read, or the candidates to score; of these
            the ones to read.
        scores: in training (True) and in predictions, with the compiled `score`.
        learn, predict_on_crops: compiled; the step and the prediction on crops.
    """

    def __init__(
        self,
        net: Selective,
        tx: optax.GradientTransformation,
        read: Callable,
        mesh: Mesh,
        spread: bool = False,
    ):
        self.net, self.mesh, self._reader = net, mesh, read
        split, whole = split_over(mesh), whole_on(mesh)
        self._learner = Learner(net, tx, self._read_first)
        # In training others select than in predictions, and each keeps its scores.
        scores = lambda: Scores(net, mesh, self.read_tiles)
        self.scores = {True: scores(), False: scores()}
        self._first = compile_phase(net.first, static=("n",), out=split, mesh=mesh)
        self._init_on_crops = compile_phase(net.init_on_crops, out=whole, mesh=mesh)
        self.begin = compile_phase(
            net.begin, static=("n", "train"), out=split, mesh=mesh
        )
        self.select = compile_phase(net.select, out=split, mesh=mesh)
        self._corners = compile_phase(net.cells.crop_corners, static=("shape",))
        self.learn = compile_phase(
            self._learner.step, donate=(0,), mesh=mesh, spread=spread,
            out=(state_shardings(mesh, spread), whole),
        )  # fmt: skip
        self.predict_on_crops = compile_phase(
            functools.partial(counted_prediction, net), out=split, mesh=mesh
        )
        self._fold = compile_phase(jax.random.fold_in, out=whole, mesh=mesh)

    def init(self, key, batch: Bag) -> TrainState:
        """The initial state; reads crops of the first batch."""
        batch = Placed.of(batch, self.mesh)
        state = replicate(self._learner.init(key, batch), self.mesh)
        if not self.net.in_state:
            return state
        ahead = replicate(self._select_to_learn(state, batch, 0), self.mesh)
        return state._replace(opt=state.opt._replace(ahead=ahead))

    def steps(
        self, state: TrainState, batches: Iterable[Bag]
    ) -> Iterator[tuple[TrainState, dict[str, Array]]]:
        """(state, metrics) after each batch; the state given is donated.

        Raises:
            ValueError: the batches end, though the state is to hold the selection for
                the next one.
        """
        net, place = self.net, lambda batch: Placed.of(batch, self.mesh)
        batches = map(place, batches)
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
            crops = self._read_by_all(reading)
            state, metrics = self.learn(state, batch.devices, selection, crops, kept)
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
        key = replicate(key, self.mesh)
        view, waiting = self.net.view(params), None
        for batch in batches:
            batch = Placed.of(batch, self.mesh)
            selection = self._select(view, batch, key, train=False)
            coming = batch, selection, self.read(batch, selection)
            if waiting:
                yield self._predicted(params, *waiting)
            waiting = coming
        if waiting:
            yield self._predicted(params, *waiting)

    def read(self, batch: Placed, selection: Selection) -> Any:
        """A future of the selected crops of this process's slides; only indices leave
        the devices."""
        own = rows_here((selection.index, selection.mask), self.mesh)
        return self.read_tiles(batch, *own)

    def places(self, batch: Placed, index: np.ndarray) -> tuple:
        """Magnification and corner of cells of this process's slides."""
        corners = self._corners(index, shape=batch.host.mask.shape[1:])
        return jax.device_get(corners)

    def read_tiles(self, batch: Placed, index: np.ndarray, mask: np.ndarray) -> Any:
        """A future of some tiles of this process's slides."""
        return self._reader(batch.slide, *self.places(batch, index), mask)

    def _read_by_all(self, reading):
        """Crops over the devices, once all processes have read theirs."""
        crops = reading.result()
        if share(self.mesh)["processes"] > 1:
            meet("crops")  # what devices do together waits for seconds only
        return split(crops, self.mesh)

    def _read_first(self, params, batch, select_key, adapt_key):
        n = self.net.most_cells(batch.host.mask, train=False)
        params, *keys = replicate((params, select_key, adapt_key), self.mesh)
        selection = self._first(params, batch.devices, keys[0], n=n)
        index, mask = rows_here((selection.index, selection.mask), self.mesh)
        magnification, corners = self.places(batch, index)
        crops = self._reader(batch.slide, magnification, corners, mask).result()
        crops, magnification = split((crops, magnification), self.mesh)
        return self._init_on_crops(
            keys[1], params, crops, magnification, selection.mask
        )

    def _select_to_learn(self, state, batch, later: int):
        """What is read of a batch that is learnt from `later` steps from now."""
        key = self._fold(state.key, state.step + later)
        return self._select(self._learner.view(state), batch, key, train=True)

    def _select(self, view, batch, key, train) -> Selection:
        n = self.net.most_cells(batch.host.mask, train)
        selection = self.begin(view, batch.devices, key, n=n, train=train)
        if not self.net.chunk:
            return selection
        return self.select(selection, self.scores[train](view, batch, selection))

    def _predicted(self, params, batch, selection, reading):
        crops = self._read_by_all(reading)
        return self.predict_on_crops(params, batch.devices, selection, crops)
