"""What becomes of crops: their features, the pooled one, the verdict."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num, PyTree

from wsi_jax.nets.attention import GatedAttention
from wsi_jax.nets.trunk import Trunk
from wsi_jax.ops.crops import by_chunks
from wsi_jax.types import Bag


class CropReader:
    """Trunk and head of a method that judges slides by crops, as pure functions.

    Parameters are {"trunk": ..., "head": ...}; whatever else there is is left alone.

    Args:
        trunk: of the crops; trained from its weights where it has some.
        head: what becomes of a crop's features.
        deviation: pool the trunk's map to mean and deviation, not to its mean alone.
        chunk: crops encoded at a time; None for all.
        learns: whether the trunk has a gradient, which is most of the work.
    """

    def __init__(
        self,
        trunk: Trunk,
        head: "CropHead",
        deviation: bool,
        chunk: int | None,
        learns: bool = True,
    ):
        self.trunk, self.head, self.chunk = trunk, head, chunk
        self.learns = learns
        net = trunk.make()
        self.apply, self.dim = net.apply, net.dim
        if deviation:
            cells = trunk.trunk()
            self.apply = lambda params, x: mean_and_deviation(cells.apply(params, x))
            self.dim = 2 * cells.dim

    def init(self, key: Array) -> PyTree:
        """New parameters; `begin` tells them what crops are like."""
        keys = jax.random.split(key)
        one = jnp.zeros((1, self.dim)), jnp.zeros(1, jnp.int32)
        trunk = self.trunk.make().init(keys[0])
        return {"trunk": trunk, "head": self.head.init(keys[1], *one)}

    def begin(
        self,
        key: Array,
        params: PyTree,
        crops: Num[Array, "b n s s 3"],
        which: Int[Array, "b n"],
        mask: Bool[Array, "b n"],
    ) -> PyTree:
        """Parameters with the trunk's weights and the statistics of some crops."""
        # What was not read is like anything, here like the first crop.
        crops = jnp.where(mask[..., None, None, None], crops, crops[:1, :1])
        flat = Bag(crops.reshape(-1, *crops.shape[2:]), None, None, None)
        params = params | {"trunk": self.trunk.begin(key, flat)}
        x = self.encode(params, crops)
        return params | {"head": with_statistics(params["head"], x, which, mask)}

    def encode(
        self, params: PyTree, crops: Num[Array, "b n s s 3"]
    ) -> Float[Array, "b n f"]:
        """The trunk's features of crops."""
        trunk = params["trunk"]
        trunk = trunk if self.learns else lax.stop_gradient(trunk)
        return by_chunks(lambda pixels: self.apply(trunk, pixels), crops, self.chunk)

    def embed(
        self,
        params: PyTree,
        crops: Num[Array, "b n s s 3"],
        which: Int[Array, "b n"],
    ) -> Float[Array, "b n d"]:
        """The head's features of crops of some magnifications."""
        x = self.encode(params, crops)
        return self.head.apply(params["head"], x, which, method="embed")

    def attend(self, params: PyTree, h: Float[Array, "b n d"]) -> Float[Array, "b n"]:
        """Attention logits of crops by their features."""
        return self.head.apply(params["head"], h, method="attend")

    def classify(
        self, params: PyTree, weights: Float[Array, "b n"], h: Float[Array, "b n d"]
    ) -> Float[Array, "b c"]:
        """Logits of slides, of their crops' features and weights."""
        pooled = jnp.einsum("bn,bnd->bd", weights, h)
        return self.head.apply(params["head"], pooled, method="classify")


def mean_and_deviation(cells: Float[Array, "b y x d"]) -> Float[Array, "b e"]:
    """Mean of each feature over a map and, behind all of these, its deviation.

    The deviation tells a mixture of two textures from either, which their mean does
    not tell from a third one.
    """
    cells = cells.astype(jnp.promote_types(cells.dtype, jnp.float32))
    mean = cells.mean((1, 2), keepdims=True)
    variance = ((cells - mean) ** 2).mean((1, 2))
    return jnp.concatenate([mean[:, 0, 0], jnp.sqrt(variance + 1e-6)], -1)


class Standardise(nn.Module):
    """Shifts and scales features by constants, of each magnification its own.

    What all crops of a magnification share, and random trunks see little else, would
    hide in what they differ. `with_statistics` sets them.

    Attributes:
        magnifications: how many there are.
    """

    magnifications: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "*n f"], which: Int[Array, "*n"]
    ) -> Float[Array, "*n f"]:
        init, shape = nn.initializers, (self.magnifications, x.shape[-1])
        mean = lax.stop_gradient(self.param("mean", init.zeros, shape))
        std = lax.stop_gradient(self.param("std", init.ones, shape))
        return (x - mean[which].astype(x.dtype)) / std[which].astype(x.dtype)


class CropHead(nn.Module):
    """What becomes of crops: each one's feature, their pooled one, the verdict.

    Attributes:
        n_classes: c.
        magnifications: how many there are.
        width: of a feature.
        tells: a feature tells the magnification of its crop: each has numbers of its
            own in the pooled one, and those of the others are 0.
        unit: features have length 1: the variance of the estimate is then least where
            cells are drawn by their attention (Katharopoulos & Fleuret 2019).
        gated: width of an attention over the crops themselves; 0 for none.
        dtype: of the embedding.
    """

    n_classes: int
    magnifications: int = 1
    width: int = 64
    tells: bool = False
    unit: bool = True
    gated: int = 0
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.standardise = Standardise(self.magnifications)
        self.fc = nn.Dense(self.width, dtype=self.dtype)
        if self.gated:
            self.attention = GatedAttention(width=self.gated, dtype=self.dtype)
        self.classifier = nn.Dense(self.n_classes)

    def embed(
        self, x: Float[Array, "*n f"], which: Int[Array, "*n"]
    ) -> Float[Array, "*n d"]:
        """The feature of each crop, from the trunk's and its magnification."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        h = nn.relu(self.fc(self.standardise(x, which))).astype(wide)
        if self.tells:
            mine = jax.nn.one_hot(which, self.magnifications, dtype=wide)
            h = (mine[..., None] * h[..., None, :]).reshape(*which.shape, -1)
        if not self.unit:
            return h
        # Under the root a little, for it has no gradient at a feature that is zero.
        return h / jnp.sqrt((h**2).sum(-1, keepdims=True) + 1e-12)

    def attend(self, h: Float[Array, "*n d"]) -> Float[Array, "*n"]:
        """Attention logits of crops by what they show (Ilse et al. 2018, eq. 9)."""
        return self.attention(h)[..., 0]

    def classify(self, pooled: Float[Array, "b d"]) -> Float[Array, "b c"]:
        """Logits of the slide's classes."""
        return self.classifier(pooled)

    def __call__(
        self, x: Float[Array, "*n f"], which: Int[Array, "*n"]
    ) -> Float[Array, "*n c"]:
        """Touches every parameter, for `init`."""
        h = self.embed(x, which)
        if self.gated:
            self.attend(h)
        return self.classify(h)


def with_statistics(
    params: PyTree,
    x: Float[Array, "b n f"],
    which: Int[Array, "b n"],
    mask: Bool[Array, "b n"],
) -> PyTree:
    """The parameters of a `CropHead` with the statistics of some crops' features."""
    old = params["params"]["standardise"]
    mine = jax.nn.one_hot(which, len(old["mean"]), dtype=x.dtype) * mask[..., None]
    count = jnp.maximum(mine.sum((0, 1)), 1)[:, None]
    mean = jnp.einsum("bnm,bnf->mf", mine, x) / count
    variance = jnp.einsum("bnm,bnmf->mf", mine, (x[:, :, None] - mean[None, None]) ** 2)
    std = jnp.sqrt(variance / count)
    new = {"mean": mean, "std": jnp.where(std > 1e-6 * jnp.abs(mean), std, 1)}
    new = jax.tree.map(lambda a, b: jnp.where(count > 1, a, b), new, old)
    return {"params": params["params"] | {"standardise": new}}
