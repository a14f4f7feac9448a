"""Heads that turn a bag of tiles into a verdict, shared by every method that pools.

Each is a module of small methods rather than one call, so that the bag can be embedded
chunk by chunk (`ops.pooling.attend`) and single tiles again.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num, PyTree


class Standardise(nn.Module):
    """Shifts and scales features by statistics that no gradient moves."""

    @nn.compact
    def __call__(self, x: Num[Array, "b n f"]) -> Float[Array, "b n f"]:
        init, shape = nn.initializers, (x.shape[-1],)
        mean = lax.stop_gradient(self.param("mean", init.zeros, shape))
        std = lax.stop_gradient(self.param("std", init.ones, shape))
        return (x - mean[None, None]) / std[None, None]


class Embedding(nn.Module):
    """One fully connected layer on each tile, with ReLU and dropout.

    Attributes:
        width: d, features out.
        dropout: rate, while training.
        standardise: features first, by `Standardise`.
        dtype: of the matmul.
    """

    width: int
    dropout: float = 0.0
    standardise: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Num[Array, "b n f"], train: bool = False
    ) -> Float[Array, "b n d"]:
        if self.standardise:
            x = Standardise(name="standardise")(x)
        h = nn.relu(nn.Dense(self.width, dtype=self.dtype, name="fc")(x))
        return nn.Dropout(self.dropout, deterministic=not train)(h)


class GatedAttention(nn.Module):
    """Logits of gated attention (Ilse et al. 2018, eq. 9).

    Attributes:
        branches: k, attentions over the same tiles.
        width: of the hidden layer.
        dropout: rate on both halves of the hidden layer, while training.
        dtype: of the matmuls; the logits are at least float32.
    """

    branches: int = 1
    width: int = 256
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, h: Float[Array, "*n d"], train: bool = False
    ) -> Float[Array, "*n k"]:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        dense = lambda width, name: nn.Dense(width, dtype=self.dtype, name=name)
        value = drop(nn.tanh(dense(self.width, "value")(h)))
        gate = drop(nn.sigmoid(dense(self.width, "gate")(h)))
        logits = dense(self.branches, "logits")(value * gate)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class AttentionHead(nn.Module):
    """Embedding, gated attention and classifier: ABMIL and CLAM (Lu et al. 2021).

    Attributes:
        n_classes: c.
        branches: 1 (ABMIL, CLAM-SB: one attention, a linear layer to all classes) or c
            (CLAM-MB: a class's logit comes from its own attention alone).
        width: of the embedding.
        attention: hidden width of the attention.
        dropout: rate, while training.
        standardise: features first, by `Standardise`.
        dtype: of the matmuls.
    """

    n_classes: int
    branches: int = 1
    width: int = 512
    attention: int = 256
    dropout: float = 0.0
    standardise: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self):
        c, init = self.n_classes, nn.initializers
        if self.branches not in (1, c):
            raise ValueError(f"{self.branches} branches; 1 or {c}, one for each class")
        self.embedding = Embedding(
            self.width, self.dropout, self.standardise, self.dtype
        )
        self.gated = GatedAttention(
            self.branches, self.attention, self.dropout, self.dtype
        )
        across = init.variance_scaling(
            1, "fan_avg", "truncated_normal", in_axis=1, out_axis=0
        )
        self.kernel = self.param("kernel", across, (c, self.width))
        self.bias = self.param("bias", init.zeros, (c,))
        self.instance_kernel = self.param(
            "instance_kernel",
            init.glorot_normal(in_axis=1, out_axis=2, batch_axis=0),
            (c, self.width, 2),
        )
        self.instance_bias = self.param("instance_bias", init.zeros, (c, 2))

    def embed(
        self, x: Num[Array, "b n f"], train: bool = False
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n k"]]:
        """Features of each tile, and its attention before the softmax."""
        h = self.embedding(x, train)
        return h, self.gated(h, train)

    def classify(self, pooled: Float[Array, "b k d"]) -> Float[Array, "b c"]:
        """Logits of the slide's classes."""
        pooled, kernel = _promoted(pooled, self.kernel)
        if self.branches == 1:
            return pooled[:, 0] @ kernel.T + self.bias[None]
        return jnp.einsum("bcd,cd->bc", pooled, kernel) + self.bias[None]

    def judge(self, h: Float[Array, "b s d"]) -> Float[Array, "b s c 2"]:
        """Logits of each tile under each class's clustering: (negative, positive)."""
        h, kernel = _promoted(h, self.instance_kernel)
        return jnp.einsum("bsd,cdo->bsco", h, kernel) + self.instance_bias[None, None]

    def __call__(self, x: Num[Array, "b n f"]) -> Float[Array, "b c"]:
        """Touches every parameter, for `init`."""
        h, _ = self.embed(x)
        self.judge(h)
        return self.classify(jnp.repeat(h[:, :1], self.branches, 1))


class PooledHead(nn.Module):
    """Embedding and classifier around a pooling without attention (mean, max).

    Attributes:
        n_classes: c.
        width: of the embedding.
        dropout: rate, while training.
        standardise: features first, by `Standardise`.
        dtype: of the matmuls of the embedding.
    """

    n_classes: int
    width: int = 512
    dropout: float = 0.0
    standardise: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.embedding = Embedding(
            self.width, self.dropout, self.standardise, self.dtype
        )
        self.classifier = nn.Dense(self.n_classes)

    def embed(
        self, x: Num[Array, "b n f"], train: bool = False
    ) -> Float[Array, "b n d"]:
        """Features of each tile."""
        return self.embedding(x, train)

    def classify(self, pooled: Float[Array, "b d"]) -> Float[Array, "b c"]:
        """Logits of the slide's classes."""
        return self.classifier(pooled)

    def __call__(self, x: Num[Array, "b n f"]) -> Float[Array, "b c"]:
        """Touches every parameter, for `init`."""
        return self.classify(self.embed(x).mean(1))


def _promoted(h, kernel):
    dtype = jnp.promote_types(h.dtype, kernel.dtype)
    return h.astype(dtype), kernel.astype(dtype)


def with_statistics(
    params: PyTree, mean: Float[Array, " f"], std: Float[Array, " f"]
) -> PyTree:
    """The parameters of a head with the statistics of its `Standardise`."""
    head = dict(params["params"])
    statistics = {"standardise": {"mean": mean, "std": std}}
    head["embedding"] = dict(head["embedding"]) | statistics
    return {"params": head}
