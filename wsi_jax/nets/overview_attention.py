"""The net of attention sampling: attention over an overview's cells."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt8

from wsi_jax.config_fields import COUNT
from wsi_jax.nets.pixels import RGB, standardise
from wsi_jax.ops.narrow_maps import cell_features_on_device


@dataclasses.dataclass(kw_only=True)
class OverviewConfig:
    """The net whose attention on the overview says where crops lie.

    Attributes:
        channels: number of channels.
        layers: number of convolutions on the overview.
        relative: whether colours are relative to those of the slide's own tissue.
    """

    channels: int = 16
    layers: int = 2
    relative: bool = False

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(
        ("channels", "layers"), COUNT
    )

    def make(
        self, cell_px: int, ratios: tuple[int, ...], dtype: DTypeLike
    ) -> "OverviewAttention":
        """The net, for such cells; arguments as it has them."""
        return OverviewAttention(
            cell_px, ratios, self.channels, self.layers, self.relative, dtype
        )


class OverviewAttention(nn.Module):
    """Attention logits of every cell at every magnification, from an overview.

    3x3 convolutions on the overview, pooled to cells; one more on the cells; a linear
    layer that starts at zero, so that the first attention is uniform. Masked cells are
    zero throughout: neither glass nor padding has an effect.

    Attributes:
        cell_px: side of a cell of the finest magnification, in pixels.
        ratios: side of each magnification's cells, in cells of the finest.
        relative: whether colours are standardised by the slide's own tissue, so that
            neither stain nor scanner has an effect.
        dtype: dtype of the convolutions; logits are at least float32.
    """

    cell_px: int
    ratios: tuple[int, ...]
    width: int = 16
    layers: int = 2
    relative: bool = False
    dtype: DTypeLike = jnp.float32
    mean: RGB = (0.7, 0.55, 0.7)
    std: RGB = (0.2, 0.2, 0.2)

    @nn.compact
    def __call__(
        self, overview: UInt8[Array, "b h w 3"], mask: Bool[Array, "b y x"]
    ) -> Float[Array, "b k"]:
        x = standardise(overview, self.mean, self.std, self.dtype)
        if self.relative:
            fine = mask.repeat(self.cell_px, 1).repeat(self.cell_px, 2)[..., None]
            x = relative_to_tissue(x, fine)
        layers, d = [], x.shape[-1]
        for i in range(self.layers):
            kernel = _Convolution(d, self.width, name=f"conv{i}")()
            layers.append(kernel | _Norm(self.width, name=f"norm{i}")())
            d = self.width
        x = cell_features_on_device(layers, x, mask, self.cell_px)
        x = nn.Conv(2 * self.width, (3, 3), dtype=self.dtype, name="cells")(x)
        x = jnp.where(mask[..., None], nn.relu(_norm("norm")(x)), 0)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.concatenate([self._logits(i, x, mask) for i in range(self.n)], 1)

    @property
    def n(self) -> int:
        """Number of magnifications."""
        return len(self.ratios)

    def _logits(self, i, x, mask):
        """Logits of the cells of magnification i."""
        ratio, count = self.ratios[i], mask[..., None].astype(x.dtype)
        if ratio > 1:
            x, count = _sums(x, ratio), _sums(count, ratio)
        x = x / jnp.maximum(count, 1)
        zeros = nn.initializers.zeros
        out = nn.Dense(1, kernel_init=zeros, dtype=x.dtype, name=f"logits{i}")(x)
        return out.reshape(len(out), -1)


def relative_to_tissue(
    x: Float[Array, "b h w 3"], tissue: Bool[Array, "b h w 1"]
) -> Float[Array, "b h w 3"]:
    """Colours, standardised by the mean and deviation of each slide's tissue."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    count = jnp.maximum(tissue.sum((1, 2), keepdims=True), 1)
    mean = jnp.where(tissue, wide, 0).sum((1, 2), keepdims=True) / count
    centred = jnp.where(tissue, wide - mean, 0)
    variance = (centred**2).sum((1, 2), keepdims=True) / count
    return (centred / jnp.sqrt(variance + 1e-4)).astype(x.dtype)


class _Convolution(nn.Module):
    """Parameters of a 3x3 convolution, with the names of `nn.Conv`."""

    d_in: int
    d: int

    @nn.compact
    def __call__(self):
        init, shape = nn.initializers.lecun_normal(), (3, 3, self.d_in, self.d)
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.d,), jnp.float32)
        return {"kernel": kernel, "bias": bias}


class _Norm(nn.Module):
    """Parameters of a layer norm over channels, with the names of `nn.LayerNorm`."""

    d: int

    @nn.compact
    def __call__(self):
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale = self.param("scale", ones, (self.d,), jnp.float32)
        bias = self.param("bias", zeros, (self.d,), jnp.float32)
        return {"norm_scale": scale, "norm_bias": bias}


def _norm(name):
    """Layer norm over the channels of each position, so that positions do not mix."""
    return nn.LayerNorm(epsilon=1e-5, name=name)


def _sums(x, ratio):
    """Sums over blocks of ratio x ratio cells; the last blocks may be smaller."""
    b, y, x_, d = x.shape
    x = jnp.pad(x, [(0, 0), (0, -y % ratio), (0, -x_ % ratio), (0, 0)])
    blocks = x.reshape(b, -(-y // ratio), ratio, -(-x_ // ratio), ratio, d)
    return blocks.sum((2, 4))
