"""ConvNeXt trunks with timm's arithmetic and names, dense or streamed."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wsi_jax.nets.chain import Chain
from wsi_jax.nets.norm import Norm, NormKind
from wsi_jax.nets.pixels import RGB, standardise
from wsi_jax.ops.trunk_ops import DENSE, Map, Ops

_INIT = nn.initializers.truncated_normal(0.02)
_norm = functools.partial(Norm, NormKind.layer, eps=1e-6)


class Conv(nn.Module):
    """A convolution with bias."""

    d_in: int
    d: int
    size: int
    stride: int
    dtype: DTypeLike
    padding: int = 0
    groups: int = 1

    @nn.compact
    def __call__(self, x: Map, ops: Ops) -> Map:
        shape = (self.size, self.size, self.d_in // self.groups, self.d)
        kernel = self.param("kernel", _INIT, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.d,), jnp.float32)
        x = ops.conv(x, kernel.astype(self.dtype), self.stride, self.padding)
        shift = bias.astype(self.dtype)[None, None, None]
        return ops.each(lambda y: y + shift, x)


class Mlp(nn.Module):
    """Two 1x1 convolutions with GELU between."""

    d: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=_INIT)
        x = nn.gelu(dense(4 * self.d, name="fc1")(x), approximate=False)
        return dense(self.d, name="fc2")(x)


class Block(nn.Module):
    """A residual block (Liu et al. 2022, fig. 4): depthwise 7x7, norm, 1x1 out and in.

    Attributes:
        scale: initial layer scale of the branch (Touvron et al. 2021, eq. 4).
    """

    d: int
    scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Map, ops: Ops) -> Map:
        shape = (self.d, self.d, 7, 1, self.dtype)
        y = Conv(*shape, padding=3, groups=self.d, name="conv_dw")(x, ops)
        y = ops.each(_norm(name="norm"), y)
        y = ops.each(Mlp(self.d, self.dtype, name="mlp"), y)
        init = nn.initializers.constant(self.scale)
        gamma = self.param("gamma", init, (self.d,), jnp.float32)
        gamma = gamma.astype(self.dtype)[None, None, None]
        return ops.add(ops.each(lambda y: gamma * y, y), x)


class Reduction(nn.Module):
    """A convolution that shrinks the map, with a norm after or before it.

    Attributes:
        stride: stride and kernel size of the convolution.
        norm_last: whether the norm comes after the convolution.
    """

    d_in: int
    d: int
    stride: int
    norm_last: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Map, ops: Ops) -> Map:
        shape = (self.d_in, self.d, self.stride, self.stride, self.dtype)
        if self.norm_last:
            x = Conv(*shape, name="0")(x, ops)
            return ops.each(_norm(name="1"), x)
        x = ops.each(_norm(name="0"), x)
        return Conv(*shape, name="1")(x, ops)


class Stage(nn.Module):
    """Blocks of one width; all stages but the first halve the map first."""

    d_in: int
    d: int
    blocks: int
    scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Map, ops: Ops) -> Map:
        if self.d_in != self.d:
            shape = self.d_in, self.d, 2, False, self.dtype
            x = Reduction(*shape, name="downsample")(x, ops)
        block = functools.partial(Block, self.d, self.scale, self.dtype)
        return Chain((block,) * self.blocks, name="blocks")(x, ops)


class ConvNeXt(nn.Module):
    """A ConvNeXt (Liu et al. 2022) from pixels to a map of features.

    Parameters have timm's names: stem.0, stages.1.downsample.0,
    stages.0.blocks.0.conv_dw, ... All norms are over channels, so it can stream. The
    stride is `stem` px, doubled by each stage but the first.

    Attributes are those of `conv_encoder.ConvNeXtEncoder`; norms have at least float32.
    """

    blocks: tuple[int, ...]
    dtype: DTypeLike
    mean: RGB
    std: RGB
    width: int = 96
    stem: int = 4
    scale: float = 1e-6

    @property
    def dim(self) -> int:
        """Number of features."""
        return self.width * 2 ** (len(self.blocks) - 1)

    @nn.compact
    def __call__(self, pixels: Map, ops: Ops = DENSE) -> Map:
        """Pixels [b h w 3] -> features [b y x d], as maps of `ops`.

        Args:
            pixels: 0 to 255 in any dtype: floats are not scaled to 1.
        """
        standard = lambda x: standardise(x, self.mean, self.std, self.dtype)
        x = ops.each(standard, pixels)
        shape = 3, self.width, self.stem, True, self.dtype
        x = Reduction(*shape, name="stem")(x, ops)
        d_in, stages = self.width, []
        for i, blocks in enumerate(self.blocks):
            shape = d_in, self.width * 2**i, blocks, self.scale, self.dtype
            stages.append(functools.partial(Stage, *shape))
            d_in = self.width * 2**i
        return Chain(tuple(stages), name="stages")(x, ops)
