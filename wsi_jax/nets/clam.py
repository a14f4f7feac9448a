"""CLAM on bags of tiles: prediction, and the losses of slides and of their tiles."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree

from wsi_jax.nets.attention import AttentionHead, embed_tiles
from wsi_jax.nets.classification_loss import classification_loss
from wsi_jax.ops.attention_weights import Normaliser, normalise
from wsi_jax.ops.pooling import AttentionPooled, attention_pool
from wsi_jax.ops.slide_keys import halves


class Clam(NamedTuple):
    """An attention head and how it is trained (Lu et al. 2021).

    Attributes:
        net: one attention (ABMIL, CLAM-SB), or one for each class (CLAM-MB).
        chunk: tiles embedded at a time; a longer bag is pooled exactly.
        instance_weight: share of the clustering loss in the total; 0 for none.
        sampled: tiles clustered from each end of the attention.
        subtyping: whether the classes exclude each other.
    """

    net: AttentionHead
    chunk: int = 16384
    instance_weight: float = 0.0
    sampled: int = 8
    subtyping: bool = False
    normaliser: Normaliser = Normaliser.softmax

    @classmethod
    def of(cls, net: AttentionHead, config) -> "Clam":
        """By the fields of a method's config that have these names."""
        own = {name: getattr(config, name) for name in cls._fields if name != "net"}
        return cls(net, **own)

    def predict(
        self,
        params: PyTree,
        x: Num[Array, "b n f"],
        mask: Bool[Array, "b n"],
        keys: Key[Array, " b"] | None = None,
    ) -> tuple[Float[Array, "b c"], Float[Array, "b n"]]:
        """Logits, and the attention behind the likeliest class.

        Args:
            keys: of each slide [b], drop out as in training; None for prediction.
        """
        pooled = self._pool(params, x, mask, keys)
        logits = self._classify(params, pooled)
        several = self.net.branches > 1
        branch = logits.argmax(-1) if several else jnp.zeros(len(logits), int)
        own = jnp.take_along_axis(pooled.logits, branch[:, None, None], 1)[:, 0]
        return logits, normalise(own, mask, self.normaliser)

    def loss(
        self,
        params: PyTree,
        x: Num[Array, "b n f"],
        mask: Bool[Array, "b n"],
        label: Int[Array, " b"],
        keys: Key[Array, " b"] | None = None,
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
        """Cross-entropy of each slide, mixed with the clustering loss; and metrics."""
        tile_keys = None
        if keys is not None:
            keys, tile_keys = halves(keys)
        pooled = self._pool(params, x, mask, keys)
        logits = self._classify(params, pooled)
        bag, metrics = classification_loss(logits, label)
        if not self.instance_weight:
            return bag, metrics
        # A short slide's ends reach into the padding, which may hold anything.
        clean = jnp.where(mask[..., None], x, 0)

        def tile_logits(index):
            tiles = jnp.take_along_axis(clean, index[..., None], 1)
            h, _ = embed_tiles(self.net, params, tiles, tile_keys)
            return self.net.apply(params, h, method="instance_logits")

        instance = instance_loss(
            tile_logits, pooled.logits, mask, label, n_classes=self.net.n_classes,
            sampled=self.sampled, subtyping=self.subtyping,
        )  # fmt: skip
        w = self.instance_weight
        metrics |= {"bag_loss": bag, "instance_loss": instance}
        return (1 - w) * bag + w * instance, metrics

    def _pool(self, params, x, mask, keys) -> AttentionPooled:
        embed = lambda x, keys: embed_tiles(self.net, params, x, keys)
        return attention_pool(
            embed, x, mask, chunk=self.chunk, keys=keys, normaliser=self.normaliser
        )

    def _classify(self, params, pooled):
        return self.net.apply(params, pooled.pooled, method="classify")


def instance_loss(
    tile_logits: Callable,
    logits: Float[Array, "b k n"],
    mask: Bool[Array, "b n"],
    label: Int[Array, " b"],
    *,
    n_classes: int,
    sampled: int,
    subtyping: bool,
) -> Float[Array, " b"]:
    """CLAM's clustering of the most and least attended tiles (Lu et al. 2021, eq. 5-6).

    Under the true class's instance classifier the `sampled` most attended tiles are
    positive and the least attended negative. With `subtyping` the most attended tiles
    of every other class are negative under its classifier, and the sum is divided by
    the number of classes. The choice has no gradient.

    Args:
        tile_logits: indices [b s] -> logits [b s c 2] of those tiles, by classifier.
        logits: attention before it is normalised, one branch, or one for each class.
        mask: True where there is a tile; a slide with fewer than `sampled` gives all.
    """
    sampled = min(sampled, mask.shape[-1])
    logits = lax.stop_gradient(logits)
    is_label = jax.nn.one_hot(label, n_classes, dtype=bool)
    exists = jnp.arange(sampled)[None] < mask.sum(-1, keepdims=True)

    def class_loss(c: int) -> Float[Array, " b"]:
        branch = logits[:, min(c, logits.shape[1] - 1)]
        top = lax.top_k(jnp.where(mask, branch, -jnp.inf), sampled)[1]
        low = lax.top_k(jnp.where(mask, -branch, -jnp.inf), sampled)[1]
        both = tile_logits(jnp.concatenate([top, low], 1))[:, :, c]
        high, low = jnp.split(jax.nn.log_softmax(both), 2, axis=1)
        count = jnp.maximum(exists.sum(-1), 1)
        mean = lambda log_p: jnp.where(exists, -log_p, 0).sum(-1) / count
        inside = (mean(high[..., 1]) + mean(low[..., 0])) / 2
        outside = mean(high[..., 0]) if subtyping else jnp.zeros_like(inside)
        return jnp.where(is_label[:, c], inside, outside)

    total = sum(class_loss(c) for c in range(n_classes))
    return total / n_classes if subtyping else total
