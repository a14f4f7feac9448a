"""Multiple-instance heads: gated attention (ABMIL, CLAM), and mean or max pooling.

`AttentionHead.__call__` is the whole forward pass of ABMIL for a bag that fits in
memory; its parts are methods, for bags that are embedded chunk by chunk (`nets.clam`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree

from wsi_jax.ops.attention_weights import Normaliser, normalise


class Standardise(nn.Module):
    """Shifts and scales features by constants that no gradient moves.

    `with_statistics` sets them.

    Attributes:
        magnifications: number of magnifications with constants of their own; None for
            one set of constants.
    """

    magnifications: int | None = None

    @nn.compact
    def __call__(
        self, x: Num[Array, "*n f"], magnification: Int[Array, "*n"] | None = None
    ) -> Float[Array, "*n f"]:
        init, shape = nn.initializers, (x.shape[-1],)
        shape = shape if self.magnifications is None else (self.magnifications, *shape)
        mean = lax.stop_gradient(self.param("mean", init.zeros, shape))
        std = lax.stop_gradient(self.param("std", init.ones, shape))
        if magnification is None:
            mean, std = (a.reshape((1,) * (x.ndim - 1) + (-1,)) for a in (mean, std))
        else:
            mean, std = mean[magnification], std[magnification]
        return (x - mean) / std


def with_statistics(
    params: PyTree, mean: Float[Array, "*m f"], std: Float[Array, "*m f"]
) -> PyTree:
    """Parameters of a head whose `Standardise` has this mean and standard deviation."""
    statistics, flat = {"mean": mean, "std": std}, flatten_dict(params)
    ours = [path for path in flat if path[-2] == "standardise"]
    return unflatten_dict(flat | {path: statistics[path[-1]] for path in ours})


class Embedding(nn.Module):
    """One fully connected layer on each tile, with ReLU and dropout."""

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


def torch_uniform(fan_in: int):
    """PyTorch's default initialiser: uniform within 1 / sqrt(fan_in), biases too."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_linear(
    fan_in: int,
    features: int,
    dtype: DTypeLike | None = None,
    bias: bool = True,
    name: str | None = None,
) -> nn.Dense:
    """Dense layer with PyTorch's initial draw; dtype None follows the input's."""
    init = torch_uniform(fan_in)
    return nn.Dense(features, bias, dtype, kernel_init=init, bias_init=init, name=name)


class GatedAttention(nn.Module):
    """Logits of gated attention (Ilse et al. 2018, eq. 9).

    Attributes:
        branches: k, number of attentions over the same tiles.
        dropout: rate on both halves of the hidden layer, while training.
        dtype: dtype of the matmuls; the logits are at least float32.
        torch_init: whether parameters start as PyTorch's do, rather than Flax's.
    """

    branches: int = 1
    width: int = 256
    dropout: float = 0.0
    dtype: DTypeLike | None = jnp.float32
    torch_init: bool = False

    @nn.compact
    def __call__(
        self, h: Float[Array, "*n d"], train: bool = False
    ) -> Float[Array, "*n k"]:
        def dense(x, width, name):
            if self.torch_init:
                return torch_linear(x.shape[-1], width, self.dtype, name=name)(x)
            return nn.Dense(width, dtype=self.dtype, name=name)(x)

        drop = nn.Dropout(self.dropout, deterministic=not train)
        value = drop(nn.tanh(dense(h, self.width, "value")))
        gate = drop(nn.sigmoid(dense(h, self.width, "gate")))
        logits = dense(value * gate, self.branches, "logits")
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class AttentionHead(nn.Module):
    """Embedding, gated attention and classifier: ABMIL and CLAM (Lu et al. 2021).

    Attributes:
        branches: 1 (ABMIL, CLAM-SB: one attention, a linear layer to all classes) or c
            (CLAM-MB: a class's logit comes from its own attention alone).
        attention: hidden width of the attention.
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

    def __call__(
        self,
        x: Num[Array, "b n f"],
        mask: Bool[Array, "b n"] | None = None,
        normaliser: Normaliser = Normaliser.softmax,
    ) -> tuple[Float[Array, "b c"], Float[Array, "b k n"]]:
        """Logits and attention of whole bags; without a mask there is no padding."""
        mask = jnp.ones(x.shape[:2], bool) if mask is None else mask
        h, logits = self.embed(jnp.where(mask[..., None], x, 0))
        attention = normalise(jnp.swapaxes(logits, 1, 2), mask[:, None], normaliser)
        return self.classify(jnp.einsum("bkn,bnd->bkd", attention, h)), attention

    def embed(
        self, x: Num[Array, "b n f"], train: bool = False
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n k"]]:
        """Embedded features of each tile, and its attention logits."""
        h = self.embedding(x, train)
        return h, self.gated(h, train)

    def classify(self, pooled: Float[Array, "b k d"]) -> Float[Array, "b c"]:
        """Logits of the slide's classes."""
        pooled, kernel = _promoted(pooled, self.kernel)
        if self.branches == 1:
            return pooled[:, 0] @ kernel.T + self.bias[None]
        return jnp.einsum("bcd,cd->bc", pooled, kernel) + self.bias[None]

    def instance_logits(self, h: Float[Array, "b s d"]) -> Float[Array, "b s c 2"]:
        """Logits (negative, positive) of tiles by each class's instance classifier."""
        h, kernel = _promoted(h, self.instance_kernel)
        return jnp.einsum("bsd,cdo->bsco", h, kernel) + self.instance_bias[None, None]


def embed_tiles(
    net: nn.Module,
    params: PyTree,
    x: Num[Array, "b n f"],
    keys: Key[Array, " b"] | None = None,
) -> Any:
    """What a head's `embed` gives for tiles.

    Args:
        net: `AttentionHead` or `PooledHead`.
        keys: of each slide's dropout, in training; None for none.
    """
    if keys is None:
        return net.apply(params, x, method="embed")

    def one(x, key):
        rngs = {"dropout": key}
        return net.apply(params, x[None], True, method="embed", rngs=rngs)

    return jax.tree.map(lambda a: a[:, 0], jax.vmap(one)(x, keys))


class PooledHead(nn.Module):
    """Embedding and classifier around a pooling without attention (mean, max)."""

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
        """Embedded features of each tile."""
        return self.embedding(x, train)

    def classify(self, pooled: Float[Array, "b d"]) -> Float[Array, "b c"]:
        """Logits of the slide's classes."""
        return self.classifier(pooled)

    def __call__(self, x: Num[Array, "b n f"]) -> Float[Array, "b c"]:
        """Logits by the mean of all tiles; creates every parameter, for `init`."""
        return self.classify(self.embed(x).mean(1))


def _promoted(h, kernel):
    dtype = jnp.promote_types(h.dtype, kernel.dtype)
    return h.astype(dtype), kernel.astype(dtype)
