"""Training and verdicts of a method that looks, and then reads what it chose.

In between it leaves the device: overview -> draw -> read -> learn. While one batch is
learnt from, threads read the crops of the next, which were drawn before; what was drawn
is part of the state, so that a resumed run reads the same crops.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import optax

from wsi_jax.ops.crop_grid import CropGrid
from wsi_jax.training.compile import compile_phase
from wsi_jax.training.supervised import supervised
from wsi_jax.types import Bag, Method, Prediction


class Chosen(NamedTuple):
    """Crops that a verdict rests on.

    Attributes:
        index: [b n], of their cells.
        weight: [b n], in the pooled feature, but for what crops themselves say.
        mask: [b n], False where fewer are read.
        log_a: [b k], attention on all cells.
    """

    index: Any
    weight: Any
    mask: Any
    log_a: Any


@runtime_checkable
class CropSelector(Protocol):
    """Nets that look and judge, as pure functions.

    Attributes:
        cells: geometry of what can be read.
        ahead: whether the next batch is drawn before this one is learnt from.
        carries: whether the state carries what was drawn: not where parameters have no
            say in it, and the same is drawn at any time.
    """

    cells: CropGrid
    ahead: bool
    carries: bool

    def init(self, key) -> Any:
        """Parameters."""

    def begin(self, key, params, crops, which, mask) -> Any:
        """Parameters that know what crops are like."""

    def count(self, mask) -> int:
        """How many crops of each slide are read."""

    def most(self, shape) -> int:
        """How many at most, where there are `shape` cells."""

    def draw(self, params, overview, mask, key, n: int) -> Any:
        """What is read in training: with `index` [b n] and `mask` [b n]."""

    def places(self, index, shape) -> tuple:
        """Magnifications and corners of the crops of some cells."""

    def loss(self, params, overview, mask, drawn, crops, label, key) -> tuple:
        """Of each slide, and metrics."""

    def choose(self, params, overview, mask, key, n: int) -> Chosen:
        """What is read for a verdict."""

    def verdict(self, params, mask, chosen, crops) -> Prediction:
        """Without FLOPs."""

    def flops(self, params, overview, mask, crop) -> tuple[int, int]:
        """Of looking at one slide, and of one crop; of these shapes."""


class Drawing(NamedTuple):
    """The optimiser's state, and what is drawn of the batch that comes next."""

    opt: Any
    drawn: Any


def looking(net: CropSelector, tx: optax.GradientTransformation) -> Method:
    """The staged Method of a net on slides that are read where it looks.

    Args:
        net: that looks and judges.
        tx: the optimiser.
    """
    staged = _Looking(net, tx)
    return Method(staged.init, staged.step, staged.predict, precompiled=True)


class _Looking:
    def __init__(self, net, tx):
        loss = lambda params, batch, key: net.loss(
            params, batch.x[0], batch.mask, *batch.x[1:], batch.target, key
        )
        self.net, self._flops = net, {}
        self._carries = net.ahead and net.carries
        self._supervised = supervised(self._begin, loss, self.predict, tx)
        # Of the batch that comes next: whose, what was chosen, its crops.
        self._training = self._judging = None
        self._draw = compile_phase(net.draw, static=("n",))
        self._choose = compile_phase(net.choose, static=("n",))
        self._places = compile_phase(net.places, static=("shape",))
        self._learn = compile_phase(self._step, donate=(0,))
        self._verdict = compile_phase(net.verdict)
        self._begun = compile_phase(net.begin)
        self._fold = compile_phase(jax.random.fold_in)

    def init(self, key, batch):
        state = self._supervised.init(key, batch)
        if not self._carries:
            return state
        drawn = self._drawn(state, batch, 0)
        return state._replace(opt=Drawing(state.opt, drawn))

    def step(self, state, batch):
        ours, self._training = self._training, None
        drawn = state.opt.drawn if self._carries else self._drawn(state, batch, 0)
        known = ours and ours[0] is batch.x.overview
        crops = ours[1] if known else self._read(batch, drawn)
        after = None
        if self.net.ahead:
            if batch.x.after is None:
                raise ValueError("a batch that does not tell which one comes next")
            after = self._drawn(state, batch.x.after, 1)
            self._training = batch.x.after.x.overview, self._read(batch.x.after, after)
        seen = batch.x.overview, drawn, crops.result()
        return self._learn(state, batch._replace(x=seen), after)

    def predict(self, params, batch, key):
        ours, self._judging = self._judging, None
        asked = batch.x.overview, params, key
        known = ours and all(a is b for a, b in zip(ours[0], asked, strict=True))
        chosen, crops = ours[1] if known else self._look(params, batch, key)
        if (after := batch.x.after) is not None:
            asked = after.x.overview, params, key
            self._judging = asked, self._look(params, after, key)
        pixels = crops.result()
        said = self._verdict(params, batch.mask, chosen, pixels)
        seen = batch.x.overview, batch.mask, pixels[:, :1]
        shapes = tuple(array.shape for array in seen)
        if shapes not in self._flops:
            one = lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype)
            self._flops[shapes] = self.net.flops(params, *map(one, seen))
        overview, crop = self._flops[shapes]
        tiles = np.asarray(chosen.mask).sum(-1)
        return said._replace(counts={"tiles": tiles, "flops": overview + tiles * crop})

    def _begin(self, key, batch):
        """New parameters, from crops of the first batch if it has any."""
        init_key, draw_key, begin_key = jax.random.split(key, 3)
        params = self.net.init(init_key)
        if batch.x.read is None:  # to ask for their shapes
            return params
        seen, n = (params, batch.x.overview, batch.mask), self.net.count(batch.mask)
        drawn = self._draw(*seen, draw_key, n=n)
        which, _ = self._places(drawn.index, shape=batch.mask.shape[1:])
        crops = self._read(batch, drawn).result()
        return self._begun(begin_key, params, crops, which, drawn.mask)

    def _drawn(self, state, batch: Bag, later: int):
        """What is drawn of a batch that is learnt from `later` steps from now."""
        key = self._fold(state.key, state.step + later)
        n = self.net.count(batch.mask)
        return self._draw(state.params, batch.x.overview, batch.mask, key, n=n)

    def _look(self, params, batch, key):
        n = self.net.count(batch.mask)
        chosen = self._choose(params, batch.x.overview, batch.mask, key, n=n)
        return chosen, self._read(batch, chosen)

    def _read(self, batch, chosen):
        """Begins to read; only indices leave the device."""
        shape = batch.mask.shape[1:]
        which, yx = self._places(chosen.index, shape=shape)
        return batch.x.read(*jax.device_get((which, yx, chosen.mask)))

    def _step(self, state, batch, after):
        """`supervised`'s step, beside what is drawn of the next batch."""
        if not self._carries:
            return self._supervised.step(state, batch)
        state, metrics = self._supervised.step(state._replace(opt=state.opt.opt), batch)
        return state._replace(opt=Drawing(state.opt, after)), metrics
