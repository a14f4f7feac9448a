"""Joint spatial and magnification attention sampling: look, choose, read, judge.

Zhang et al., CVPR Workshops 2021: a net sees the slide at low resolution; its attention
is one distribution over places and magnifications; a few crops are drawn from it and
read; the verdict rests on these crops alone, and all of it is trained end to end. The
estimator goes back to Katharopoulos & Fleuret (ICML 2019). Of the paper only the
abstract could be had: the nets, the layout of cells, drawing without replacement, the
entropy terms and every default below are choices of this package.

Two forms, equal but for the rounding of float32. The pure one takes slides that lie on
the device; the staged one (`train.look`) reads crops from slides on disk.
"""

import dataclasses
import enum
import itertools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from wsi_jax.nets.crop_classifier import CropOptions
from wsi_jax.nets.overview_attention import OverviewAttention
from wsi_jax.ops import sampling
from wsi_jax.ops.attention_weights import masked_softmax
from wsi_jax.ops.crop_grid import CropGrid
from wsi_jax.ops.sampling import Estimator
from wsi_jax.training.crop_selection import Chosen, looking
from wsi_jax.training.flops import count_flops
from wsi_jax.training.optimiser import Thaw, scale_learning_rate
from wsi_jax.training.resident import resident
from wsi_jax.types import Prediction, Stage, Takes, Task, padded


class Layout(enum.Enum):
    """Cells of the magnifications.

    common: all have the grid of the overview's cells; coarse crops overlap.
    own: each has cells as wide as its crops' ratio to the finest; all magnifications
        are alike at first, however many cells they have.
    """

    common = "common"
    own = "own"


class Look(enum.Enum):
    """Where crops come from: the learnt attention, or anywhere on the tissue."""

    learnt = "learnt"
    uniform = "uniform"


class Inference(enum.Enum):
    """Crops of a verdict.

    sampled: as in training, several draws averaged.
    top: the cells with the most attention, once, weighed by it.
    """

    sampled = "sampled"
    top = "top"


@dataclasses.dataclass(kw_only=True)
class AttentionSampling(CropOptions):
    """A few crops of a slide, chosen by attention on its overview.

    The overview and its cells are those of the run's grid: `grid.mpp` and
    `grid.size_px`.

    Attributes:
        mpps: um/px of the magnifications, the finest first.
        crop_px: side of a crop, whatever its magnification.
        crops: read of each slide in training.
        estimator: of the expectation over all cells.
        layout: of the magnifications' cells.
        look: where crops come from.
        inference: crops of a verdict; the other way is reported besides.
        draws: averaged where a verdict's crops are sampled, each of `crops`.
        attention: channels of the net that looks.
        layers: its convolutions on the overview.
        relative: it sees colours relative to those of the slide's own tissue.
        unit: features have length 1: the variance of the estimate is then least where
            crops are drawn by their attention; how much a crop shows is lost.
        tells: whether a feature tells its magnification.
        centred: a crop is told from the mean of all that are read of the slide, which
            hides the slide's stain. The pooled feature is then an estimate with a bias
            that falls as 1 / crops.
        gated: width of a second attention, over what the crops show; a crop weighs by
            the product of both. Of many crops those that tell something are then not
            lost among the rest. 0 for none; its bias falls as 1 / crops.
        branches: of such attentions; the verdict sees what each of them pools. One
            alone, begun badly, settles on what tells nothing.
        thaw: when the net that looks begins to learn; before, crops come from anywhere,
            and what is to be seen in them is learnt.
        entropy: reward for the entropy of the attention, as a share of the greatest.
        spread: reward for that of its marginal over magnifications.
        alone: share in the loss of what each magnification's crops say by themselves: a
            magnification that is seldom looked at, or hard to learn from, is learnt all
            the same.
        ahead: draw and read the next batch while one is learnt from. Attention is then
            one step old when it draws, which biases neither estimate nor gradient.
    """

    mpps: tuple[float, ...] = (0.5, 1.0, 2.0)
    crop_px: int = 224
    crops: int = 32
    estimator: Estimator = Estimator.ordered
    layout: Layout = Layout.common
    look: Look = Look.learnt
    inference: Inference = Inference.sampled
    draws: int = 4
    attention: int = 16
    layers: int = 2
    relative: bool = False
    unit: bool = True
    tells: bool = False
    centred: bool = False
    gated: int = 0
    branches: int = 1
    thaw: Thaw = dataclasses.field(default_factory=Thaw)
    entropy: float = 0.01
    spread: float = 0.0
    alone: float = 0.0
    ahead: bool = True

    takes: ClassVar[Takes] = Takes.crops
    overviews: ClassVar[bool] = True
    all_tiles: ClassVar[bool] = False
    strategies_note: ClassVar[str] = (
        "Crops of a verdict: several draws averaged (sampled), or the cells with the "
        "most attention (top)"
    )

    def validate(self) -> None:
        """Raises ValueError naming the flag that is wrong."""
        self.check_counts(
            "crop_px", "crops", "draws", "attention", "layers", "branches"
        )
        if self.gated < 0:
            raise ValueError(f"--config.method.gated={self.gated}: 0 or more")
        if self.branches > 1 and not self.gated:
            raise ValueError(
                f"--config.method.branches={self.branches}: of attentions over what "
                "crops show; set --config.method.gated to their width, such as 64, or "
                "--config.method.branches=1"
            )
        mpps = tuple(self.mpps)
        rises = all(a < b for a, b in itertools.pairwise(mpps))
        if not mpps or mpps[0] <= 0 or not rises:
            raise ValueError(f"--config.method.mpps={mpps}: the finest first, above 0")
        if self.layout is Layout.own and any(m / mpps[0] % 1 for m in mpps):
            raise ValueError(
                f"--config.method.mpps={mpps}: with cells of their own all must be "
                "multiples of the first; or set --config.method.layout=common"
            )

    @property
    def strategy(self) -> str:
        """What the way to come by a verdict is called."""
        return self.inference.value

    def reads(self) -> tuple[float, ...]:
        """um/px at which slides are read besides the overview."""
        return tuple(self.mpps)

    def said(self, mpp: float) -> str:
        """What is read and learnt, of overviews at `mpp`, in a sentence or two."""
        *others, last = (f"{one:g}" for one in self.mpps)
        mpps = f"{', '.join(others)} or {last}" if others else last
        every = self.estimator is Estimator.full
        crops = f"{'all' if every else self.crops} crops of {self.crop_px} px"
        by = {Look.learnt: "attention", Look.uniform: "chance"}[self.look]
        return (
            f"Overviews at {mpp:g} um/px; {crops} at {mpps} um/px, "
            f"{'weighed' if every else 'chosen'} by {by}, trained end to end on slide "
            "labels."
        )

    def cells(self, mpp: float, cell_px: int) -> CropGrid:
        """Of overviews at `mpp` with cells of `cell_px`."""
        own = self.layout is Layout.own
        ratios = tuple(round(m / self.mpps[0]) if own else 1 for m in self.mpps)
        return CropGrid(tuple(self.mpps), self.crop_px, mpp * cell_px, ratios)

    def stages(
        self,
        task: Task,
        tx: optax.GradientTransformation,
        mpp: float,
        cell_px: int,
    ) -> tuple[Stage, ...]:
        """One stage.

        Args:
            task: what is to be told apart.
            tx: the optimiser.
            mpp: of overviews.
            cell_px: side of their cells, in pixels.
        """
        cells = self.cells(mpp, cell_px)
        tx = scale_learning_rate("trunk", self.trunk_rate, tx)
        if self.thaw.frozen and self.look is Look.learnt:
            tx = self.thaw.over(tx, "look")

        def method(inference):
            net = _Net(self, task, cells, cell_px, inference)
            return resident(net, tx) if self.resident else looking(net, tx)

        (other,) = (way for way in Inference if way is not self.inference)
        others = {other.value: method(other)}
        return (Stage("train", method(self.inference), alternatives=others),)


cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class _Net:
    """The three nets as pure functions of slides and of crops."""

    def __init__(self, config, task: Task, cells: CropGrid, cell_px, inference):
        self.config, self.cells, self.inference = config, cells, inference
        self.every = config.estimator is Estimator.full
        self.ahead, self.carries = config.ahead, not self.every
        dtype, m = config.trunk.dtype.value, len(config.mpps)
        self.overlook = OverviewAttention(
            cell_px, cells.ratios, config.attention, config.layers, config.relative,
            dtype,
        )  # fmt: skip
        self.reader = config.classifier(
            len(task.classes), magnifications=m, by_magnification=config.tells,
            unit_length=config.unit,
            attention_width=config.gated, branches=config.branches,
            centred=config.centred,
        )  # fmt: skip
        self.begin = self.reader.init_on_crops

    def init(self, key):
        keys = jax.random.split(key)
        params = self.reader.init(keys[0])
        if self.config.look is Look.uniform:
            return params
        side = self.overlook.cell_px
        one = jnp.zeros((1, side, side, 3), jnp.uint8), jnp.ones((1, 1, 1), bool)
        return params | {"look": self.overlook.init(keys[1], *one)}

    def count(self, mask):
        """Crops of a slide: all cells of the fullest, where every one is taken."""
        if not self.every:
            return self.config.crops
        masks = self.cells.cell_masks(jnp.asarray(mask))
        return padded(int(masks.sum(1).max()), 16)

    def most(self, shape):
        return sum(self.cells.cell_counts(shape)) if self.every else self.config.crops

    def log_attention(self, params, overview, mask):
        """Of all cells of all magnifications [b k]; and which of them count."""
        masks = self.cells.cell_masks(mask)
        if self.config.look is Look.uniform:
            logits = jnp.zeros(masks.shape)
        else:
            logits = self.overlook.apply(params["look"], overview, mask)
        if self.config.layout is Layout.own:  # a uniform prior over magnifications
            sizes = np.array(self.cells.cell_counts(mask.shape[1:]))
            parts = jnp.split(masks, np.cumsum(sizes)[:-1], 1)
            count = jnp.stack([part.sum(1) for part in parts], 1)
            prior = -jnp.log(jnp.maximum(count, 1))
            logits += jnp.repeat(prior, sizes, 1, total_repeat_length=sizes.sum())
        return jax.vmap(sampling.log_attention)(logits, masks), masks

    def draw(self, params, overview, mask, key, n):
        """Cells to learn from, of each slide."""
        log_a, _ = self.log_attention(params, overview, mask)
        return self._drawn(log_a, key, n)

    def _drawn(self, log_a, key, n):
        keys = jax.random.split(jax.random.fold_in(key, 0), len(log_a))
        # Every cell is drawn in some order where there are not more than n of them.
        how = Estimator.ordered if self.every else self.config.estimator
        return jax.vmap(lambda k, a: sampling.draw_cells(k, a, n, how))(keys, log_a)

    def places(self, index, shape):
        return self.cells.crop_corners(index, shape)

    def loss(self, params, overview, mask, drawn, crops, label, key):
        config, shape = self.config, mask.shape[1:]
        log_a, masks = self.log_attention(params, overview, mask)
        how = Estimator.ordered if self.every else config.estimator
        weights = jax.vmap(lambda a, d: sampling.sample_weights(a, d, how))(
            log_a, drawn
        )
        which, _ = self.places(drawn.index, shape)
        crops = config.augmented(jax.random.fold_in(key, 1), crops)
        h = self.reader.embed(params, crops, which, drawn.mask)
        logits = self.reader.classify(params, self.weigh(params, weights, h), h)
        loss = cross_entropy(logits, label)
        if config.alone:
            loss += config.alone * self.loss_alone(params, weights, h, which, label)
        accuracy = (logits.argmax(-1) == label).astype(jnp.float32)
        # Shares of what they can be at most, so that no slide's size weighs.
        most = jnp.log(jnp.maximum(masks.sum(1), 2))
        entropy = jax.vmap(sampling.entropy)(log_a) / most
        sizes = self.cells.cell_counts(shape)
        mass = jax.vmap(lambda a: sampling.attention_by_magnification(a, sizes))(log_a)
        metrics = {"accuracy": accuracy, "entropy": entropy}
        metrics |= {
            f"mass.{mpp:g}": mass[:, i] for i, mpp in enumerate(self.cells.mpps)
        }
        loss = loss - config.entropy * entropy
        if config.spread and len(sizes) > 1:
            safe = jnp.where(mass > 0, mass, 1)
            loss += config.spread * (mass * jnp.log(safe)).sum(1) / math.log(len(sizes))
        return loss, metrics

    def weigh(self, params, weights, h):
        """In each attention on what crops show [b m n]; in one where there is none."""
        if not self.config.gated:
            return weights[:, None]
        return self.reader.posterior_weights(params, weights, h)

    def loss_alone(self, params, weights, h, which, label):
        """Of the verdicts by the crops of one magnification, their mean [b]."""
        parts = [jnp.where(which == i, weights, 0) for i in range(len(self.cells.mpps))]
        there = jnp.stack([part.sum(1) > 0 for part in parts], 1)
        each = [
            self.reader.classify(
                params, self.reader.posterior_weights(params, part, h), h
            )
            for part in parts
        ]
        losses = jnp.stack([cross_entropy(logits, label) for logits in each], 1)
        count = jnp.maximum(there.sum(1), 1)
        return jnp.where(there, losses, 0).sum(1) / count

    def choose(self, params, overview, mask, key, n):
        """Cells that a verdict rests on, of each slide, and their weights."""
        log_a, _ = self.log_attention(params, overview, mask)
        if self.inference is Inference.top:
            n = min(n, log_a.shape[1])
            best, index = lax.top_k(log_a, n)
            there = jnp.isfinite(best)
            return Chosen(index, masked_softmax(best, there), there, log_a)
        how = Estimator.ordered if self.every else self.config.estimator
        draws = 1 if self.every else self.config.draws
        keys = [jax.random.fold_in(key, i) for i in range(draws)]
        drawn = [self._drawn(log_a, key, n) for key in keys]
        weigh = jax.vmap(lambda a, d: sampling.sample_weights(a, d, how))
        weights = [weigh(log_a, one) / draws for one in drawn]
        index, there = ([getattr(d, name) for d in drawn] for name in ("index", "mask"))
        index, weights, there = (jnp.concatenate(a, 1) for a in (index, weights, there))
        return Chosen(index, weights, there, log_a)

    def verdict(self, params, mask, chosen, crops):
        shape = mask.shape[1:]
        which, yx = self.places(chosen.index, shape)
        h = self.reader.embed(params, crops, which, chosen.mask)
        weights = self.weigh(params, chosen.weight, h)
        logits = self.reader.classify(params, weights, h)
        maps = self.cells.attention_on_finest(jnp.exp(chosen.log_a), mask)
        # The cells with tissue come first, row by row, as everywhere.
        order = jnp.argsort(~mask.reshape(len(mask), -1), stable=True)
        total = maps.sum(1).reshape(len(mask), -1)
        trace = {
            "maps": maps,
            "which": which,
            "yx": yx,
            "weight": weights.mean(1),
            "read": chosen.mask,
        }
        return Prediction(logits, jnp.take_along_axis(total, order, 1), {}, trace)

    def flops(self, params, overview, mask, crop):
        look = lambda *seen: self.log_attention(*seen)[0]
        one = [jax.ShapeDtypeStruct((1, 1), kind) for kind in (jnp.int32, jnp.bool_)]

        def read(params, crop, which, there):
            h = self.reader.embed(params, crop, which, there)
            return self.weigh(params, jnp.ones(which.shape), h), h

        return (
            count_flops(look, params, overview, mask),
            count_flops(read, params, crop, *one),
        )
