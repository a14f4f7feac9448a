"""Patch-all: every tile through a frozen encoder, and a pool trained on slides."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from wsi_jax.config_fields import COUNT
from wsi_jax.nets.attention import (
    AttentionHead,
    PooledHead,
    embed_tiles,
    with_statistics,
)
from wsi_jax.nets.clam import Clam
from wsi_jax.nets.classification_loss import classification_loss
from wsi_jax.ops.attention_weights import Normaliser, masked_softmax
from wsi_jax.ops.pooling import attention_pool, feature_moments, max_pool
from wsi_jax.training.flops import count_flops
from wsi_jax.training.supervised import supervised
from wsi_jax.types import Dtype, Prediction, Stage, Takes, Task


@dataclasses.dataclass(kw_only=True)
class Pool:
    """Fields of every pool of encoded tiles.

    Attributes:
        width: width of the embedding of each tile.
        dropout: dropout rate.
        standardise: shift and scale the features by the mean and deviation of the first
            training batch. For encoders whose features vary little about a large mean,
            as random ones do; what CLAM publishes goes without.
        chunk: tiles embedded at a time; a longer bag is pooled exactly, chunk by chunk.
        dtype: type of the matmuls.
    """

    width: int = 512
    dropout: float = 0.25
    standardise: bool = False
    chunk: int = 16384
    dtype: Dtype = Dtype.float32

    takes: ClassVar[Takes] = Takes.features
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **dict.fromkeys(("width", "chunk", "attention", "sampled"), COUNT),
        **dict.fromkeys(("dropout", "instance_weight"), (0, 1)),
    }

    def trained(self) -> "Pool":
        """The method as its checkpoint needs it."""
        return self


@dataclasses.dataclass(kw_only=True)
class Mean(Pool):
    """Average of the embedded tiles, then a linear layer."""

    def stages(self, task: Task, tx: optax.GradientTransformation) -> tuple[Stage, ...]:
        net = _pooled_head(self, task)

        def forward(params, bag, keys):
            def embed(x, keys):
                h = embed_tiles(net, params, x, keys)
                return h, jnp.zeros((*h.shape[:2], 1))

            pooled = attention_pool(embed, bag.x, bag.mask, chunk=self.chunk, keys=keys)
            logits = net.apply(params, pooled.pooled[:, 0], method="classify")
            return logits, masked_softmax(pooled.logits[:, 0], bag.mask)

        return _one_stage(net, forward, tx)


@dataclasses.dataclass(kw_only=True)
class Max(Pool):
    """Greatest value of each embedded feature, then a linear layer.

    A tile's attention is the share of the features in which it is the greatest.
    """

    def stages(self, task: Task, tx: optax.GradientTransformation) -> tuple[Stage, ...]:
        net = _pooled_head(self, task)

        def forward(params, bag, keys):
            embed = lambda x, keys: embed_tiles(net, params, x, keys)
            best = max_pool(embed, bag.x, bag.mask, chunk=self.chunk, keys=keys)
            count = lambda winner, mask: jnp.zeros(mask.shape).at[winner].add(1) * mask
            attention = jax.vmap(count)(best.winner, bag.mask) / best.winner.shape[-1]
            return net.apply(params, best.pooled, method="classify"), attention

        return _one_stage(net, forward, tx)


@dataclasses.dataclass(kw_only=True)
class ABMIL(Pool):
    """Gated attention pooling (Ilse et al. 2018, eq. 9).

    Attributes:
        attention: hidden width of the attention.
        normaliser: how attention logits become weights; the paper's is the softmax.
    """

    attention: int = 256
    normaliser: Normaliser = Normaliser.softmax

    # CLAM's fields, off.
    multi_branch: ClassVar[bool] = False
    instance_weight: ClassVar[float] = 0.0
    sampled: ClassVar[int] = 8
    subtyping: ClassVar[bool] = False

    def stages(self, task: Task, tx: optax.GradientTransformation) -> tuple[Stage, ...]:
        classes = len(task.classes)
        net = AttentionHead(
            n_classes=classes,
            branches=classes if self.multi_branch else 1,
            width=self.width,
            attention=self.attention,
            dropout=self.dropout,
            standardise=self.standardise,
            dtype=self.dtype.value,
        )
        clam = Clam.of(net, self)
        forward = lambda params, bag, keys: clam.predict(params, bag.x, bag.mask, keys)
        loss = lambda params, bag, keys: clam.loss(
            params, bag.x, bag.mask, bag.target, keys
        )
        return _one_stage(net, forward, tx, loss)


@dataclasses.dataclass(kw_only=True)
class CLAM(ABMIL):
    """Clustering-constrained attention (Lu et al. 2021).

    Attributes:
        multi_branch: an attention for each class (CLAM-MB) rather than one (CLAM-SB).
        instance_weight: share of the clustering loss in the total.
        sampled: tiles clustered from each end of the attention.
        subtyping: whether the classes exclude each other, so that the most attended
            tiles of one class are evidence against the others.
    """

    multi_branch: bool = False
    instance_weight: float = 0.3
    sampled: int = 8
    subtyping: bool = False


def _one_stage(net, forward, tx, loss=None) -> tuple[Stage, ...]:
    """The Method of a net and its `forward(params, bag, keys)`: logits, attention."""

    def init(key, bag):
        params = net.init(key, bag.x[:1, :1])
        if not net.standardise:
            return params
        return with_statistics(params, *feature_moments(bag.x, bag.mask))

    def cross_entropy(params, bag, keys):
        logits, _ = forward(params, bag, keys)
        return classification_loss(logits, bag.target)

    def predict(params, bag, key):
        del key
        logits, attention = forward(params, bag, None)
        tiles = bag.mask.sum(-1)
        one, two = (_flops(forward, params, bag, n) for n in (1, 2))
        flops = one + (tiles - 1).astype(jnp.float32) * (two - one)
        return Prediction(logits, attention, {"tiles": tiles, "flops": flops})

    return (Stage("train", supervised(init, loss or cross_entropy, predict, tx)),)


def _flops(forward, params, bag, n):
    shape = lambda a, *s: jax.ShapeDtypeStruct((1, *s), a.dtype)
    x, mask = shape(bag.x, n, bag.x.shape[-1]), shape(bag.mask, n)
    one = bag._replace(x=x, mask=mask, target=shape(bag.target))
    return count_flops(lambda params, bag: forward(params, bag, None), params, one)


def _pooled_head(config: Pool, task: Task) -> PooledHead:
    return PooledHead(
        n_classes=len(task.classes),
        width=config.width,
        dropout=config.dropout,
        standardise=config.standardise,
        dtype=config.dtype.value,
    )
