"""Classification of slides by their crops: trunk and head."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from wsi_jax.nets.attention import GatedAttention, Standardise, with_statistics
from wsi_jax.nets.trunk import Trunk
from wsi_jax.ops.attention_weights import softmax_with_prior
from wsi_jax.ops.crop_grid import map_in_chunks
from wsi_jax.types import Bag


class CropMILHead(nn.Module):
    """Embedding of crops, attention over them, and classifier of their pooled features.

    Attributes:
        n_classes: c.
        config: options of the head, `nets.crop_options.HeadConfig`.
        magnifications: number of magnifications; each is standardised by itself, since
            what all its crops share would hide how they differ.
        dtype: dtype of the embedding.
    """

    n_classes: int
    config: Any
    magnifications: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.standardise = Standardise(self.magnifications)
        self.fc = nn.Dense(self.config.width, dtype=self.dtype)
        if width := self.config.attention_width:
            self.attention = GatedAttention(
                self.config.branches, width, dtype=self.dtype
            )
        self.classifier = nn.Dense(self.n_classes)

    def embed(
        self, x: Float[Array, "*n f"], magnification: Int[Array, "*n"]
    ) -> Float[Array, "*n d"]:
        """Embedding of each crop, from its trunk features and its magnification."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        h = nn.relu(self.fc(self.standardise(x, magnification))).astype(wide)
        if self.config.by_magnification:
            own = jax.nn.one_hot(magnification, self.magnifications, dtype=wide)
            h = (own[..., None] * h[..., None, :]).reshape(*magnification.shape, -1)
        if not self.config.unit_length:
            return h
        # An epsilon under the root, which has no gradient at an embedding of zero.
        return h / jnp.sqrt((h**2).sum(-1, keepdims=True) + 1e-12)

    def attention_logits(self, h: Float[Array, "*n d"]) -> Float[Array, "*n m"]:
        """Attention logits of crops by their embedding (Ilse et al. 2018, eq. 9)."""
        return self.attention(h)

    def classify(self, pooled: Float[Array, "b d"]) -> Float[Array, "b c"]:
        """Logits of the slide's classes, from the pooled features of all branches."""
        return self.classifier(pooled)

    def __call__(
        self, x: Float[Array, "*n f"], magnification: Int[Array, "*n"]
    ) -> Float[Array, "*n c"]:
        """Logits of single crops; creates every parameter, for `init`."""
        h = self.embed(x, magnification)
        if self.config.attention_width:
            self.attention_logits(h)
            h = jnp.concatenate([h] * self.config.branches, -1)
        return self.classify(h)


class CropClassifier:
    """Trunk and head of a method that classifies slides by crops, as pure functions.

    Parameters are {"trunk": ..., "head": ...}; other entries are left alone.

    Args:
        trunk: trunk of the crops; trained from its weights where it has some.
        chunk: crops encoded at a time; None for all.
        trainable: whether the trunk has a gradient, which is most of the work.
    """

    def __init__(
        self, trunk: Trunk, head: CropMILHead, chunk: int | None, trainable: bool = True
    ):
        self.trunk, self.head = trunk, head
        self.chunk, self.trainable = chunk, trainable
        net = trunk.pooled(head.config.deviation)
        self.apply, self.dim = net.apply, net.dim

    def init(self, key: Array) -> PyTree:
        """New parameters; `init_on_crops` then adapts them to crops."""
        keys = jax.random.split(key)
        one = jnp.zeros((1, self.dim)), jnp.zeros(1, jnp.int32)
        trunk = self.trunk.make().init(keys[0])
        return {"trunk": trunk, "head": self.head.init(keys[1], *one)}

    def init_on_crops(
        self,
        key: Array,
        params: PyTree,
        crops: Num[Array, "b n s s 3"],
        magnification: Int[Array, "b n"],
        mask: Bool[Array, "b n"],
    ) -> PyTree:
        """Parameters with the trunk's weights and the statistics of some crops."""
        # Crops that were not read are replaced by a typical one, the first.
        crops = jnp.where(mask[..., None, None, None], crops, crops[:1, :1])
        flat = Bag(crops.reshape(-1, *crops.shape[2:]), None, None, None)
        params = params | {"trunk": self.trunk.init_calibrated(key, flat)}
        x = self._features(params, crops, magnification, mask)
        head = _standardised(params["head"], x, magnification, mask)
        return params | {"head": head}

    def encode(
        self, params: PyTree, crops: Num[Array, "b n s s 3"]
    ) -> Float[Array, "b n f"]:
        """The trunk's features of crops."""
        trunk = params["trunk"]
        trunk = trunk if self.trainable else lax.stop_gradient(trunk)
        return map_in_chunks(
            lambda pixels: self.apply(trunk, pixels), crops, self.chunk
        )

    def embed(
        self,
        params: PyTree,
        crops: Num[Array, "b n s s 3"],
        magnification: Int[Array, "b n"],
        mask: Bool[Array, "b n"],
    ) -> Float[Array, "b n d"]:
        """The head's embedding of crops; arbitrary behind the mask."""
        x = self._features(params, crops, magnification, mask)
        return self.head.apply(params["head"], x, magnification, method="embed")

    def _features(self, params, crops, magnification, mask):
        x = self.encode(params, crops)
        if not self.head.config.centred:
            return x
        own = _one_hot(self.head.magnifications, x, magnification, mask)
        count = jnp.maximum(own.sum(1), 1)[..., None]
        mean = jnp.einsum("bnm,bnf->bmf", own, x) / count
        return x - jnp.einsum("bnm,bmf->bnf", own, mean)

    def attention_logits(
        self, params: PyTree, h: Float[Array, "b n d"]
    ) -> Float[Array, "b m n"]:
        """Logits of each attention over crops, by their embedding."""
        logits = self.head.apply(params["head"], h, method="attention_logits")
        return jnp.moveaxis(logits, -1, 1)

    def posterior_weights(
        self, params: PyTree, weights: Float[Array, "b n"], h: Float[Array, "b n d"]
    ) -> Float[Array, "b m n"]:
        """Weights times exp(attention logits of the crops), scaled to a sum of 1.

        Without an attention over crops they are only scaled. Zeros where all are 0.
        """
        prior = weights[:, None]
        if not self.head.config.attention_width:
            return softmax_with_prior(prior, jnp.zeros_like(prior))
        logits = self.attention_logits(params, h)
        return softmax_with_prior(jnp.broadcast_to(prior, logits.shape), logits)

    def classify(
        self, params: PyTree, weights: Float[Array, "b m n"], h: Float[Array, "b n d"]
    ) -> Float[Array, "b c"]:
        """Logits of slides, from their crops' embeddings and weights by attention."""
        pooled = jnp.einsum("bmn,bnd->bmd", weights, h).reshape(len(h), -1)
        return self.head.apply(params["head"], pooled, method="classify")

    def classify_each(
        self, params: PyTree, crops: Num[Array, "b n s s 3"]
    ) -> Float[Array, "b n c"]:
        """Logits of crops of the first magnification, each by itself."""
        magnification = jnp.zeros(crops.shape[:2], jnp.int32)
        mask = jnp.ones(crops.shape[:2], bool)
        h = self.embed(params, crops, magnification, mask)
        flat = h.reshape(-1, h.shape[-1])
        logits = self.head.apply(params["head"], flat, method="classify")
        return logits.reshape(*h.shape[:2], -1)

    def classify_max(
        self, params: PyTree, h: Float[Array, "b n d"], mask: Bool[Array, "b n"]
    ) -> tuple[Float[Array, "b c"], Float[Array, "b n"]]:
        """Logits of slides, from the greatest value of each feature over crops; and
        each crop's share of these values."""
        present = jnp.where(mask[..., None], h, -jnp.inf)
        winner = lax.stop_gradient(present).argmax(1)
        best = jnp.take_along_axis(present, winner[:, None], 1)[:, 0]
        best = jnp.where(mask.any(1)[:, None], best, 0)
        logits = self.head.apply(params["head"], best, method="classify")
        return logits, jax.nn.one_hot(winner, mask.shape[1]).mean(1) * mask


def _one_hot(magnifications, x, magnification, mask):
    own = jax.nn.one_hot(magnification, magnifications, dtype=x.dtype)
    return own * mask[..., None]


def _standardised(params, x, magnification, mask):
    """Parameters of a `CropMILHead`, with statistics of features [b n f] of crops."""
    old = params["params"]["standardise"]
    own = _one_hot(len(old["mean"]), x, magnification, mask)
    count = jnp.maximum(own.sum((0, 1)), 1)[:, None]
    mean = jnp.einsum("bnm,bnf->mf", own, x) / count
    variance = jnp.einsum("bnm,bnmf->mf", own, (x[:, :, None] - mean[None, None]) ** 2)
    std = jnp.sqrt(variance / count)
    new = {"mean": mean, "std": jnp.where(std > 1e-6 * jnp.abs(mean), std, 1)}
    return with_statistics(
        params, **jax.tree.map(lambda a, b: jnp.where(count > 1, a, b), new, old)
    )
