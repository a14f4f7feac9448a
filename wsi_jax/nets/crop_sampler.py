"""Attention over the cells of an overview, and crops sampled by it."""

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree, UInt8

from wsi_jax.config_fields import COUNT
from wsi_jax.nets.overview_attention import OverviewAttention
from wsi_jax.ops import sampling
from wsi_jax.ops.attention_weights import masked_softmax
from wsi_jax.ops.crop_grid import CropGrid
from wsi_jax.ops.sampling import CellSample, Estimator
from wsi_jax.types import padded


class Layout(enum.Enum):
    """Cells of the magnifications.

    common: all have the grid of the overview's cells; coarse crops overlap.
    own: each has cells as wide as its crops' ratio to the finest; all magnifications
        are alike at first, however many cells they have.
    """

    common = "common"
    own = "own"


class Placement(enum.Enum):
    """Where crops lie: by the learnt attention, or uniformly on the tissue."""

    learnt = "learnt"
    uniform = "uniform"


class Inference(enum.Enum):
    """Crops of a prediction.

    sampled: as in training, several draws averaged.
    top: the cells with the most attention, once, weighted by it.
    """

    sampled = "sampled"
    top = "top"


@dataclasses.dataclass(kw_only=True)
class SamplingConfig:
    """Sampling of crops by the attention over cells.

    Attributes:
        placement: where crops lie.
        layout: cells of the magnifications.
        estimator: estimator of the expectation over all cells.
        inference: crops of a prediction; the alternative is reported besides.
        draws: number of draws averaged where a prediction's crops are sampled.
        lookahead: whether the next batch is drawn and read while one is learnt from.
            Attention is then one step old when it draws, which biases neither estimate
            nor gradient.
    """

    placement: Placement = Placement.learnt
    layout: Layout = Layout.common
    estimator: Estimator = Estimator.ordered
    inference: Inference = Inference.sampled
    draws: int = 4
    lookahead: bool = True

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"draws": COUNT}


class CropSampler:
    """Attention over cells, and samples of them, as pure functions."""

    def __init__(
        self,
        config: SamplingConfig,
        crops: int,
        cells: CropGrid,
        net: OverviewAttention,
    ):
        self.config, self.crops, self.cells, self.net = config, crops, cells, net
        self.every_cell = config.estimator is Estimator.full
        self.learnt = config.placement is Placement.learnt

    def init(self, key: Array) -> PyTree:
        """Parameters of the net; None where crops are placed uniformly."""
        if not self.learnt:
            return None
        side = self.net.cell_px
        overview = jnp.zeros((1, side, side, 3), jnp.uint8)
        return self.net.init(key, overview, jnp.ones((1, 1, 1), bool))

    def most_crops(self, mask: np.ndarray) -> int:
        """Number of crops of a slide: of the fullest, where every cell is taken."""
        if not self.every_cell:
            return self.crops
        with jax.ensure_compile_time_eval():
            cells = int(self.cells.tissue_cells(jnp.asarray(mask)).sum(1).max())
        return min(padded(cells, 16), sum(self.cells.cell_counts(mask.shape[1:])))

    def log_attention(
        self,
        params: PyTree,
        overview: UInt8[Array, "b h w 3"],
        mask: Bool[Array, "b y x"],
    ) -> Float[Array, "b k"]:
        """Log-attention on all cells of all magnifications; -inf without tissue."""
        masks = self.cells.tissue_cells(mask)
        if self.learnt:
            logits = self.net.apply(params, overview, mask)
        else:
            logits = jnp.zeros(masks.shape)
        if self.config.layout is Layout.own:  # a uniform prior over magnifications
            sizes = np.array(self.cells.cell_counts(mask.shape[1:]))
            parts = jnp.split(masks, np.cumsum(sizes)[:-1], 1)
            count = jnp.stack([part.sum(1) for part in parts], 1)
            prior = -jnp.log(jnp.maximum(count, 1))
            logits += jnp.repeat(prior, sizes, 1, total_repeat_length=sizes.sum())
        return jax.vmap(sampling.log_attention)(logits, masks)

    def draw(self, log_a: Float[Array, "b k"], key: Array, n: int) -> CellSample:
        """A sample of n cells of each slide."""
        if self.every_cell:  # in one order, whatever the parameters
            index = jnp.argsort(~jnp.isfinite(log_a), stable=True)[:, :n]
            every = lambda a, index: sampling.sample_of(a, index, -jnp.inf)
            return jax.vmap(every)(log_a, index)
        keys = jax.random.split(jax.random.fold_in(key, 0), len(log_a))
        draw = lambda key, a: sampling.draw_cells(key, a, n, self.config.estimator)
        return jax.vmap(draw)(keys, log_a)

    def weights(
        self, log_a: Float[Array, "b k"], sample: CellSample
    ) -> Float[Array, "b n"]:
        """Weights of a sample, whose weighted features estimate the expectation."""
        estimator = self.config.estimator
        weights = lambda a, sample: sampling.sample_weights(a, sample, estimator)
        return jax.vmap(weights)(log_a, sample)

    def choose(
        self, log_a: Float[Array, "b k"], key: Array, n: int, inference: Inference
    ) -> tuple[Array, Array, Array]:
        """Cells of a prediction: their numbers, mask and weights, each [b n]."""
        if inference is Inference.top:
            best, index = lax.top_k(log_a, min(n, log_a.shape[1]))
            mask = jnp.isfinite(best)
            return index, mask, masked_softmax(best, mask)
        draws = 1 if self.every_cell else self.config.draws
        keys = [jax.random.fold_in(key, i) for i in range(draws)]
        samples = [self.draw(log_a, key, n) for key in keys]
        weights = [self.weights(log_a, sample) / draws for sample in samples]
        join = lambda parts: jnp.concatenate(list(parts), 1)
        index, mask = join(s.index for s in samples), join(s.mask for s in samples)
        return index, mask, join(weights)

    def entropies(
        self, log_a: Float[Array, "b k"], mask: Bool[Array, "b y x"]
    ) -> tuple[Float[Array, " b"], Float[Array, " b"], Float[Array, "b m"]]:
        """Entropy of the attention, and of its marginal over magnifications, as shares
        of what they can be at most; and that marginal."""
        most = jnp.log(jnp.maximum(self.cells.tissue_cells(mask).sum(1), 2))
        entropy = jax.vmap(sampling.entropy)(log_a) / most
        sizes = self.cells.cell_counts(mask.shape[1:])
        mass = jax.vmap(lambda a: sampling.attention_by_magnification(a, sizes))(log_a)
        negative = (mass * jnp.log(jnp.where(mass > 0, mass, 1))).sum(1)
        return entropy, -negative / math.log(max(len(sizes), 2)), mass
