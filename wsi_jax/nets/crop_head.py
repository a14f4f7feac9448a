"""From the features of crops to a verdict, whatever their trunk."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from wsi_jax.nets.attention import GatedAttention


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
        branches: m, of such attentions; the verdict sees what each of them pools. One
            alone may settle on what tells nothing.
        dtype: of the embedding.
    """

    n_classes: int
    magnifications: int = 1
    width: int = 64
    tells: bool = False
    unit: bool = True
    gated: int = 0
    branches: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.standardise = Standardise(self.magnifications)
        self.fc = nn.Dense(self.width, dtype=self.dtype)
        if self.gated:
            self.attention = GatedAttention(self.branches, self.gated, dtype=self.dtype)
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

    def attend(self, h: Float[Array, "*n d"]) -> Float[Array, "*n m"]:
        """Attention logits of crops by what they show (Ilse et al. 2018, eq. 9)."""
        return self.attention(h)

    def classify(self, pooled: Float[Array, "b d"]) -> Float[Array, "b c"]:
        """Logits of the slide's classes, from what all attentions pool, in a row."""
        return self.classifier(pooled)

    def __call__(
        self, x: Float[Array, "*n f"], which: Int[Array, "*n"]
    ) -> Float[Array, "*n c"]:
        """Touches every parameter, for `init`."""
        h = self.embed(x, which)
        if self.gated:
            self.attend(h)
            h = jnp.concatenate([h] * self.branches, -1)
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
