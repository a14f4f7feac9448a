"""ResNet trunks with torchvision's arithmetic and names, dense or streamed."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wsi_jax.nets.chain import Chain
from wsi_jax.nets.norm import Norm, NormKind
from wsi_jax.nets.pixels import standardise
from wsi_jax.ops.trunk_ops import DENSE, Map, Ops


class Conv(nn.Module):
    """A convolution, padded by half its kernel."""

    d_in: int
    d: int
    size: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Map,
        ops: Ops,
        factor: Float[Array, " d"] | None = None,
        bias: Float[Array, " d"] | None = None,
    ) -> Map:
        # Fan out, not truncated: torchvision's choice (He et al. 2015, eq. 14).
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        shape = (self.size, self.size, self.d_in, self.d)
        kernel = self.param("kernel", init, shape, jnp.float32)
        if factor is None:
            return ops.conv(x, kernel.astype(self.dtype), self.stride, self.size // 2)
        kernel = (kernel * factor[None, None, None]).astype(self.dtype)
        y = ops.conv(x, kernel, self.stride, self.size // 2)
        return ops.each(lambda y: (y + bias[None, None, None]).astype(y.dtype), y)


class Block(nn.Module):
    """A residual block (He et al. 2016, fig. 5).

    Two 3x3 convolutions, or as a bottleneck 1x1, 3x3, 1x1 with d / 4 channels inside.
    The stride is on the first 3x3 ("v1.5"), as in torchvision and timm.

    Attributes:
        bottleneck: whether it has three convolutions rather than two.
    """

    d_in: int
    d: int
    stride: int
    bottleneck: bool
    norm: NormKind
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Map, ops: Ops) -> Map:
        inner = self.d // 4
        narrow = ((inner, 1, 1), (inner, 3, self.stride), (self.d, 1, 1))
        plain = ((self.d, 3, self.stride), (self.d, 3, 1))
        y, d_in = x, self.d_in
        for i, (d, size, stride) in enumerate(narrow if self.bottleneck else plain, 1):
            y = y if i == 1 else ops.relu(y)
            conv = Conv(d_in, d, size, stride, self.dtype, name=f"conv{i}")
            y = Norm(self.norm, name=f"bn{i}").after(conv, y, ops)
            d_in = d
        if self.stride != 1 or self.d_in != self.d:
            shape = self.d_in, self.d, self.stride
            x = Downsample(*shape, self.norm, self.dtype, name="downsample")(x, ops)
        return ops.relu(ops.add(y, x))


class Downsample(nn.Module):
    """The skip connection where the shape changes: a strided 1x1 convolution."""

    d_in: int
    d: int
    stride: int
    norm: NormKind
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Map, ops: Ops) -> Map:
        conv = Conv(self.d_in, self.d, 1, self.stride, self.dtype, name="0")
        return Norm(self.norm, name="1").after(conv, x, ops)


class ResNet(nn.Module):
    """A ResNet (He et al. 2016) from pixels to a map of features.

    Parameters have torchvision's names: conv1, bn1, layer1.0.conv1,
    layer1.0.downsample.0, ... The stride is 32 px with four stages, 16 px with three.

    Attributes:
        blocks: number of blocks in each stage.
        dtype: dtype of convolutions and activations; norms have at least float32.
        mean: mean of red, green, blue in the pretraining images, where white is 1.
        width: channels after the first convolution; each stage doubles it.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    norm: NormKind
    dtype: DTypeLike
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    width: int = 64

    @property
    def dim(self) -> int:
        """Number of features."""
        return self.width * 2 ** (len(self.blocks) - 1) * (4 if self.bottleneck else 1)

    @nn.compact
    def __call__(self, pixels: Map, ops: Ops = DENSE) -> Map:
        """Pixels [b h w 3] -> features [b y x d], as maps of `ops`.

        Args:
            pixels: 0 to 255 in any dtype: floats are not scaled to 1.
        """
        standard = lambda x: standardise(x, self.mean, self.std, self.dtype)
        x = ops.each(standard, pixels)
        conv = Conv(3, self.width, 7, 2, self.dtype, name="conv1")
        x = Norm(self.norm, name="bn1").after(conv, x, ops)
        x = ops.max_pool(ops.relu(x), 3, 2, 1)
        alike = self.bottleneck, self.norm, self.dtype
        d_in, d, stride = self.width, self.width * (4 if self.bottleneck else 1), 1
        for i, blocks in enumerate(self.blocks, start=1):
            first = functools.partial(Block, d_in, d, stride, *alike)
            more = [functools.partial(Block, d, d, 1, *alike)] * (blocks - 1)
            x = Chain((first, *more), name=f"layer{i}")(x, ops)
            d_in, d, stride = d, 2 * d, 2
        return x
