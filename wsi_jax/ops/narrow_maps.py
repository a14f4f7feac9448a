"""Layers on maps of few channels, computed on blocks of positions.

A TPU pads channels to 128: a map of 16 takes eight times its memory there, and as much
longer. Here the positions of a block stand side by side in the channels. Kernels and
norms of blocks give the same results, at more arithmetic, of which a TPU has plenty.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from wsi_jax.ops.convolution import conv
from wsi_jax.ops.trunk_ops import relu

LANES = 128  # channels that a TPU computes together
Block = tuple[int, int]  # its height and width, in positions


def block_of(channels: int, side: int) -> Block:
    """The block of positions that fills the lanes; its sides divide `side`."""
    height = width = 1
    while 2 * height * width * channels <= LANES:
        if width <= height and side % (2 * width) == 0:
            width *= 2
        elif side % (2 * height) == 0:
            height *= 2
        else:
            break
    return height, width


def to_blocks(x: Float[Array, "b h w d"], block: Block) -> Float[Array, "b y x e"]:
    """A map with the positions of each block in its channels."""
    i, j = block
    return rearrange(x, "b (y i) (x j) d -> b y x (i j d)", i=i, j=j)


def block_kernel(
    kernel: Float[Array | np.ndarray, "3 3 d e"], block: Block
) -> Float[Array, "3 3 f g"]:
    """The kernel on maps of blocks that does what a 3x3 kernel does on positions."""
    rows, columns = map(_taps, block)
    wide = jnp.einsum(
        "uaiy,vcjx,yxde->uvacdije", rows, columns, kernel, precision="highest"
    )
    return rearrange(wide, "u v a c d i j e -> u v (a c d) (i j e)")


def _taps(n):
    """Which tap [.. 3] of the kernel joins position [n] of a block [3], the one before,
    the same, the next, to position [n] of the block itself: one-hot, or none."""
    at = np.arange(-1, 2)[:, None, None] * n + np.arange(n)[:, None] - np.arange(n)
    return jnp.asarray(at[..., None] == np.arange(-1, 2), jnp.float32)


def centred(kernel, bias):
    """A convolution minus its mean over the channels of each position, as another."""
    return kernel - kernel.mean(-1, keepdims=True), bias - bias.mean()


def normalised_blocks(
    y: Float[Array, "b y x e"],
    scale: Float[Array | np.ndarray, " d"],
    bias: Float[Array | np.ndarray, " d"],
    block: Block,
) -> Float[Array, "b y x e"]:
    """Layer norm over the channels of each position, whose mean is 0 already.

    In float32 at least.
    """
    count = block[0] * block[1]
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    variance = _mean_by_position(wide**2, count)
    scale, bias = (jnp.tile(a, count)[None, None, None] for a in (scale, bias))
    return wide * lax.rsqrt(variance + 1e-5) * scale + bias


def _mean_by_position(x, count):
    """The mean over the channels of each position, at all of them.

    Of a block by a matrix product: a TPU adds up no part of its lanes.
    """
    if count == 1:
        return x.mean(-1, keepdims=True)
    d = x.shape[-1] // count
    means = jnp.asarray(np.kron(np.eye(count), np.full((d, d), 1 / d)), x.dtype)
    return jnp.einsum("byxe,ef->byxf", x, means, precision="high")


@jax.custom_vjp
def _maximum(x):
    """Maximum over the last axis but one, the first of equal ones.

    JAX finds it again for the gradient, by comparing, and in vain where XLA computes x
    twice with other roundings.
    """
    return x.max(-2)


def _maximum_forward(x):
    return _maximum(x), (x.argmax(-2), x)


def _maximum_backward(saved, dy):
    at, x = saved
    place = jnp.arange(x.shape[-2])[:, None]
    here = at[..., None, :] == place.reshape((1,) * (x.ndim - 2) + place.shape)
    return (jnp.where(here, dy[..., None, :], jnp.zeros((), dy.dtype)),)


_maximum.defvjp(_maximum_forward, _maximum_backward)


def cell_features(
    layers: PyTree,
    x: Float[Array, "b h w d"],
    mask: Bool[Array, "b y x"],
    side: int,
    block: Block,
) -> Float[Array, "b y x e"]:
    """Mean and maximum over each cell of a map behind some 3x3 convolutions.

    After each a layer norm and a ReLU; masked cells are zero throughout. The norm's
    mean is taken out of the kernel: no map before it is written.

    Args:
        layers: [{`kernel`, `bias`, `norm_scale`, `norm_bias`}].
        side: side of a cell, in positions.
        block: positions that are computed together.
    """
    (i, j), dtype = block, x.dtype
    inside = mask.repeat(side // i, 1).repeat(side // j, 2)[..., None]
    x = jnp.where(inside, to_blocks(x, block), 0)
    for layer in layers:
        kernel, bias = centred(layer["kernel"], layer["bias"])
        kernel = block_kernel(kernel, block).astype(dtype)
        bias = jnp.tile(bias, i * j).astype(dtype)[None, None, None]
        y = conv(x.astype(dtype), kernel, 1, 1) + bias
        # Computed again for the gradient: y takes half the memory of what follows it.
        norm = jax.checkpoint(functools.partial(normalised_blocks, block=block))
        y = norm(y, layer["norm_scale"], layer["norm_bias"])
        x = jnp.where(inside, relu(y), 0)
    # By a reshape: the gradient of a windowed pooling is far slower.
    cells = rearrange(x, "b (y i) (x j) e -> b y x (i j) e", i=side // i, j=side // j)
    each = lambda a: rearrange(a, "b y x (p d) -> b y x p d", p=i * j)
    mean, most = each(cells.mean(3)).mean(3), _maximum(each(_maximum(cells)))
    return jnp.concatenate([mean, most], -1)


def cell_features_on_device(layers, x, mask, side):
    """`cell_features`, by blocks where it is compiled for a TPU."""
    by = functools.partial(cell_features, side=side)
    blocks = functools.partial(by, block=block_of(layers[0]["bias"].shape[0], side))
    plain = functools.partial(by, block=(1, 1))
    return lax.platform_dependent(layers, x, mask, tpu=blocks, default=plain)
