"""Joint spatial and magnification attention sampling: a few crops stand for the slide.

Zhang et al., CVPR Workshops 2021: the attention of a net on the overview is one
distribution over places and magnifications; a few crops are drawn from it and read; the
slide is classified by these crops alone, and all of it is trained end to end. The
estimator goes back to Katharopoulos & Fleuret (ICML 2019). Of the paper only the
abstract could be had: the nets, the layout of cells, drawing without replacement, the
entropy terms and every default below are choices of this package.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from wsi_jax.config_fields import COUNT, FieldError
from wsi_jax.nets.classification_loss import classification_loss
from wsi_jax.nets.crop_options import CropOptions, HeadConfig
from wsi_jax.nets.crop_sampler import (
    CropSampler,
    Inference,
    Layout,
    Placement,
    SamplingConfig,
)
from wsi_jax.nets.overview_attention import OverviewConfig
from wsi_jax.ops.crop_grid import CropGrid
from wsi_jax.ops.sampling import Estimator
from wsi_jax.training.flops import count_flops
from wsi_jax.training.optimiser import Thaw, scale_updates
from wsi_jax.training.select_and_read import Flops, Selection, Selective, on_device
from wsi_jax.training.select_and_read_from_disk import in_rounds
from wsi_jax.types import Prediction, Stage, Takes, Task


@dataclasses.dataclass(kw_only=True)
class LossConfig:
    """Terms of the loss beside the cross-entropy of the prediction.

    Attributes:
        entropy: reward for the entropy of the attention, as a share of the greatest.
        magnification_entropy: reward for that of its marginal over magnifications.
        per_magnification: share of the cross-entropy of predictions by the crops of one
            magnification each: a magnification that has little attention, or is hard to
            learn from, is learnt all the same.
    """

    entropy: float = 0.01
    magnification_entropy: float = 0.0
    per_magnification: float = 0.0


def _head() -> HeadConfig:
    return HeadConfig(unit_length=True)


@dataclasses.dataclass(kw_only=True)
class AttentionSampling(CropOptions):
    """A few crops of a slide, chosen by attention on its overview.

    The overview and its cells are those of the run's grid: `grid.mpp` and
    `grid.size_px`. With features of unit length the variance of the estimate is least
    where crops are drawn by their attention. An attention of the head over crops
    multiplies that on the overview, so that informative crops are not lost among many;
    its bias, and that of centred features, fall as 1 / crops.

    Attributes:
        mpps: um/px of the magnifications, the finest first.
        crop_px: side of a crop, whatever its magnification.
        crops: number of crops read of each slide in training.
        sampling: how crops are sampled.
        overview: the net that sees overviews.
        thaw: when the net that sees overviews begins to learn; before, its attention is
            uniform, and the rest learns from crops of the whole tissue.
        loss: terms of the loss.
    """

    mpps: tuple[float, ...] = (0.5, 1.0, 2.0)
    crop_px: int = 224
    crops: int = 32
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    overview: OverviewConfig = dataclasses.field(default_factory=OverviewConfig)
    head: HeadConfig = dataclasses.field(default_factory=_head)
    thaw: Thaw = dataclasses.field(default_factory=Thaw)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)

    takes: ClassVar[Takes] = Takes.crops
    overviews: ClassVar[bool] = True
    all_tiles: ClassVar[bool] = False
    strategies_note: ClassVar[str] = (
        "Crops of a prediction: several draws averaged (sampled), or the cells with "
        "the most attention (top)"
    )
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(
        ("crop_px", "crops", "chunk"), COUNT
    )

    def validate(self) -> None:
        """Refuses magnifications out of order, or without cells of their own."""
        mpps = tuple(self.mpps)
        rises = all(a < b for a, b in itertools.pairwise(mpps))
        if not mpps or mpps[0] <= 0 or not rises:
            raise FieldError("mpps", "the finest first, above 0")
        own = self.sampling.layout is Layout.own
        if own and any(m / mpps[0] % 1 for m in mpps):
            raise FieldError(
                "mpps",
                "with cells of their own all must be multiples of the first; or set "
                "--config.method.sampling.layout=common",
            )

    @property
    def strategy(self) -> str:
        """Name of the strategy by which a prediction's crops are chosen."""
        return self.sampling.inference.value

    def reads(self) -> tuple[float, ...]:
        """um/px at which slides are read besides the overview."""
        return tuple(self.mpps)

    def description(self, mpp: float) -> str:
        """What is read and learnt, of overviews at `mpp`, in a sentence or two."""
        *others, last = (f"{one:g}" for one in self.mpps)
        mpps = f"{', '.join(others)} or {last}" if others else last
        every = self.sampling.estimator is Estimator.full
        crops = f"{'all' if every else self.crops} crops of {self.crop_px} px"
        learnt = self.sampling.placement is Placement.learnt
        return (
            f"Overviews at {mpp:g} um/px; {crops} at {mpps} um/px, "
            f"{'weighed' if every else 'chosen'} by "
            f"{'attention' if learnt else 'chance'}, trained end to end on slide "
            "labels."
        )

    def cells(self, mpp: float, cell_px: int) -> CropGrid:
        """The cells of overviews at `mpp`, of `cell_px`."""
        own = self.sampling.layout is Layout.own
        ratios = tuple(round(m / self.mpps[0]) if own else 1 for m in self.mpps)
        return CropGrid(tuple(self.mpps), self.crop_px, mpp * cell_px, ratios)

    def stages(
        self,
        task: Task,
        tx: optax.GradientTransformation,
        mpp: float,
        cell_px: int,
    ) -> tuple[Stage, ...]:
        """One stage."""
        cells, thaw = self.cells(mpp, cell_px), self.thaw
        tx = scale_updates("trunk", self.trunk_rate, tx)
        if thaw.frozen and self.sampling.placement is Placement.learnt:
            tx = thaw.over(tx, "look")
        form = on_device if self.resident else in_rounds

        def method(inference):
            return form(_Net(self, task, cells, cell_px, inference), tx)

        mine = self.sampling.inference
        (other,) = (one for one in Inference if one is not mine)
        others = {other.value: method(other)}
        return (Stage("train", method(mine), alternatives=others),)


class _Net(Selective):
    """Attention on overviews, and classification by crops."""

    def __init__(self, config, task: Task, cells: CropGrid, cell_px, inference):
        self.config, self.cells, self.inference = config, cells, inference
        overview = config.overview.make(cell_px, cells.ratios, config.trunk.dtype.value)
        self.sampler = CropSampler(config.sampling, config.crops, cells, overview)
        self.lookahead = int(config.sampling.lookahead)
        self.in_state = bool(self.lookahead) and not self.sampler.every_cell
        self.classifier = config.classifier(
            len(task.classes), magnifications=len(config.mpps)
        )
        self.init_on_crops = self.classifier.init_on_crops

    def init(self, key):
        keys = jax.random.split(key)
        overview = self.sampler.init(keys[1])
        mine = {} if overview is None else {"look": overview}
        return self.classifier.init(keys[0]) | mine

    def view(self, params):
        return params.get("look")

    def most_cells(self, mask, train):
        del train
        return self.sampler.most_crops(mask)

    def begin(self, view, batch, key, n, train):
        """The crops to read: of `extra`, training keeps how they were drawn, prediction
        their weights [b n] and the log-attention on all cells [b k]."""
        log_a = self.sampler.log_attention(view, batch.x.overview, batch.mask)
        if train:
            sample = self.sampler.draw(log_a, key, n)
            # Index and mask are those of the selection.
            extra = sample._replace(index=None, mask=None)
            return Selection(sample.index, sample.mask, extra)
        index, mask, weights = self.sampler.choose(log_a, key, n, self.inference)
        return Selection(index, mask, (weights, log_a))

    def loss(self, params, batch, selection, crops, keys):
        label, config, mask = batch.target, self.config.loss, batch.mask
        overview = batch.x.overview
        log_a = self.sampler.log_attention(self.view(params), overview, mask)
        sample = selection.extra._replace(index=selection.index, mask=selection.mask)
        weights = self.sampler.weights(log_a, sample)
        crops = self.config.augmented(keys, crops)
        magnification, _ = self._corners(batch, selection)
        h = self.classifier.embed(params, crops, magnification, selection.mask)
        logits = self._classify(params, weights, h)[0]
        loss, metrics = classification_loss(logits, label)
        if share := config.per_magnification:
            loss += share * self._parts_loss(params, weights, h, magnification, label)
        entropy, of_magnifications, mass = self.sampler.entropies(log_a, mask)
        loss -= config.entropy * entropy
        if config.magnification_entropy:
            loss -= config.magnification_entropy * of_magnifications
        shares = {f"mass.{mpp:g}": mass[:, i] for i, mpp in enumerate(self.cells.mpps)}
        return loss, metrics | {"entropy": entropy} | shares

    def _corners(self, batch, selection):
        return self.cells.crop_corners(selection.index, batch.mask.shape[1:])

    def _classify(self, params, weights, h):
        """Logits [b c], and the weights [b m n] in each attention over crops."""
        if self.config.head.attention_width:
            weights = self.classifier.posterior_weights(params, weights, h)
        else:
            weights = weights[:, None]
        return self.classifier.classify(params, weights, h), weights

    def _parts_loss(self, params, weights, h, magnification, label):
        """Mean loss [b] of predictions by the crops of one magnification each."""
        losses, present = [], []
        for i in range(len(self.cells.mpps)):
            part = jnp.where(magnification == i, weights, 0)
            posterior = self.classifier.posterior_weights(params, part, h)
            logits = self.classifier.classify(params, posterior, h)
            losses.append(classification_loss(logits, label)[0])
            present.append(part.sum(1) > 0)
        losses, present = jnp.stack(losses, 1), jnp.stack(present, 1)
        count = jnp.maximum(present.sum(1), 1)
        return jnp.where(present, losses, 0).sum(1) / count

    def prediction(self, params, batch, selection, crops):
        mask, (weights, log_a) = batch.mask, selection.extra
        magnification, yx = self._corners(batch, selection)
        h = self.classifier.embed(params, crops, magnification, selection.mask)
        logits, weights = self._classify(params, weights, h)
        maps = self.cells.attention_on_finest(jnp.exp(log_a), mask)
        # The cells with tissue come first, row by row, as everywhere.
        order = jnp.argsort(~mask.reshape(len(mask), -1), stable=True)
        total = maps.sum(1).reshape(len(mask), -1)
        trace = {
            "maps": maps,
            "which": magnification,
            "yx": yx,
            "weight": weights.mean(1),
            "read": selection.mask,
        }
        return Prediction(logits, jnp.take_along_axis(total, order, 1), {}, trace)

    def flops(self, params, batch, crop):
        view, visible = self.view(params), (batch.x.overview, batch.mask)
        one = [jax.ShapeDtypeStruct((1, 1), kind) for kind in (jnp.int32, jnp.bool_)]

        def read(params, crop, magnification, mask):
            h = self.classifier.embed(params, crop, magnification, mask)
            if not self.config.head.attention_width:
                return h
            weights = jnp.ones(magnification.shape)
            return self.classifier.posterior_weights(params, weights, h), h

        return Flops(
            overview=count_flops(self.sampler.log_attention, view, *visible),
            read=count_flops(read, params, crop, *one),
        )
