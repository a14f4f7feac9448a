"""Nets that decide where to look closer, and that judge what was seen there."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from wsi_jax.nets.attention import GatedAttention
from wsi_jax.nets.encoder import Trunk
from wsi_jax.nets.pixels import RGB, standardise


class Overlook(nn.Module):
    """Attention logits of every cell at every magnification, from an overview.

    3x3 convolutions on the overview, pooled to cells; one more on these, so that a cell
    knows its neighbours; a linear layer that starts at zero: at first all cells of all
    magnifications are alike. What counts for nothing is zero throughout, so that
    neither glass nor padding is seen. Cells of coarser magnifications average those of
    the finest that they hold.

    Attributes:
        cell_px: side of a cell of the finest magnification, in pixels.
        ratios: of each magnification's cells to the finest.
        width: channels.
        layers: convolutions on the overview.
        dtype: of the convolutions; logits are at least float32.
        mean: of red, green, blue.
        std: their standard deviation.
    """

    cell_px: int
    ratios: tuple[int, ...]
    width: int = 16
    layers: int = 2
    dtype: DTypeLike = jnp.float32
    mean: RGB = (0.7, 0.55, 0.7)
    std: RGB = (0.2, 0.2, 0.2)

    @nn.compact
    def __call__(
        self, overview: UInt8[Array, "b h w 3"], mask: Bool[Array, "b y x"]
    ) -> Float[Array, "b k"]:
        side = self.cell_px
        fine = mask.repeat(side, 1).repeat(side, 2)[..., None]
        x = jnp.where(fine, standardise(overview, self.mean, self.std, self.dtype), 0)
        for i in range(self.layers):
            x = nn.Conv(self.width, (3, 3), dtype=self.dtype, name=f"conv{i}")(x)
            x = jnp.where(fine, nn.relu(_norm(f"norm{i}")(x)), 0)
        # By a reshape: a pooling's way back through its windows is far slower.
        b, y, x_ = mask.shape
        blocks = x.reshape(b, y, side, x_, side, -1)
        x = jnp.concatenate([blocks.mean((2, 4)), blocks.max((2, 4))], -1)
        x = nn.Conv(2 * self.width, (3, 3), dtype=self.dtype, name="cells")(x)
        x = jnp.where(mask[..., None], nn.relu(_norm("norm")(x)), 0)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.concatenate([self._logits(i, x, mask) for i in range(self.n)], 1)

    @property
    def n(self) -> int:
        """How many magnifications there are."""
        return len(self.ratios)

    def _logits(self, i, x, mask):
        """Of the cells of one magnification."""
        ratio, count = self.ratios[i], mask[..., None].astype(x.dtype)
        if ratio > 1:
            x, count = _sums(x, ratio), _sums(count, ratio)
        x = x / jnp.maximum(count, 1)
        zeros = nn.initializers.zeros
        out = nn.Dense(1, kernel_init=zeros, dtype=x.dtype, name=f"logits{i}")(x)
        return out.reshape(len(out), -1)


def pooled(trunk: Trunk, deviation: bool) -> tuple[Callable, int]:
    """(params, pixels [b h w 3]) -> features [b f] of a trunk's map; and f."""
    whole = trunk.make()
    if not deviation:
        return whole.apply, whole.dim
    net = trunk.trunk()
    return lambda params, x: mean_and_deviation(net.apply(params, x)), 2 * whole.dim


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


def _norm(name):
    """Over the channels of each position: neither cells nor slides mix."""
    return nn.LayerNorm(epsilon=1e-5, name=name)


def _sums(x, ratio):
    """Over blocks of cells; the last ones may be cut off."""
    b, y, x_, d = x.shape
    x = jnp.pad(x, [(0, 0), (0, -y % ratio), (0, -x_ % ratio), (0, 0)])
    blocks = x.reshape(b, -(-y // ratio), ratio, -(-x_ // ratio), ratio, d)
    return blocks.sum((2, 4))
