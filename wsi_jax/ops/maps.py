"""The few operations that trunks are written against, and their dense form."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# An array [b h w d] to DENSE; to other operations, what they take for one.
Map = Any


class Ops(NamedTuple):
    """All that a trunk does to maps, so that the same trunk runs dense or tile by tile.

    Attributes:
        conv: (map, kernel [i j d/g e], stride, padding) -> map, zero-padded; in g
            groups of channels where the kernel has d/g of the map's d.
        max_pool: (map, size, stride, padding, ceil=False) -> map, padded with -inf;
            with `ceil` a last window that is only partly in the map counts too.
        add: (map, map) -> map, of maps alike in shape.
        each: (f, map) -> map, where f treats every position by itself.
        whole: (f, map) -> map, where f needs the whole map at once.
    """

    conv: Callable
    max_pool: Callable
    add: Callable
    each: Callable
    whole: Callable


def conv(
    x: Float[Array, "b h w d"],
    kernel: Float[Array, "i j d_g e"],
    stride: int,
    padding: int,
) -> Float[Array, "b y x e"]:
    """Cross-correlation, as every network library has it; grouped by the kernel."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def max_pool(
    x: Float[Array, "b h w d"],
    size: int,
    stride: int,
    padding: int,
    ceil: bool = False,
) -> Float[Array, "b y x d"]:
    """The largest of each window; padding never wins."""
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    more = [-(n + 2 * padding - size) % stride * ceil for n in x.shape[1:3]]
    edges = ((0, 0), *((padding, padding + m) for m in more), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, edges)


def apply(f: Callable, x: Array) -> Array:
    """f(x): a dense map holds every position."""
    return f(x)


DENSE = Ops(conv=conv, max_pool=max_pool, add=jnp.add, each=apply, whole=apply)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def valid_conv(
    x: Float[Array, "b h w d"], kernel: Float[Array, "i j d_g e"], stride: int
) -> Float[Array, "b y x e"]:
    """Cross-correlation without padding.

    In the body of a loop XLA's CPU compiler leaves the gradient of a kernel to a naive
    kernel some 100 times slower; there it is written as a convolution that it knows.
    """
    return _valid(x, kernel, stride)


def _valid(x, kernel, stride):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _valid_forward(x, kernel, stride):
    return _valid(x, kernel, stride), (x, kernel)


def _valid_backward(stride, saved, dy):
    x, kernel = saved
    to_x = jax.linear_transpose(lambda x: _valid(x, kernel, stride), x)
    stock = lambda x, dy: jax.linear_transpose(
        lambda kernel: _valid(x, kernel, stride), kernel
    )(dy)[0]
    known = {x.shape[-1]: _kernel_gradient, 1: _depthwise_gradient}
    known = known.get(kernel.shape[2])
    if known is None:
        return to_x(dy)[0], stock(x, dy)
    known = functools.partial(known, kernel.shape, stride)
    to_kernel = lax.platform_dependent(x, dy, cpu=known, default=stock)
    return to_x(dy)[0], to_kernel


def _depthwise_gradient(shape, stride, x, dy):
    """One sum over the map for each place in the kernel."""
    height, width = (stride * n for n in dy.shape[1:3])
    place = lambda i, j: x[:, i : i + height : stride, j : j + width : stride]
    sums = [
        jnp.einsum("byxd,byxd->d", place(i, j), dy)
        for i, j in np.ndindex(shape[0], shape[1])
    ]
    return jnp.stack(sums).reshape(shape)


def _kernel_gradient(shape, stride, x, dy):
    """As a convolution of x by dy: channels for images, images for channels."""
    found = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        dy.transpose(1, 2, 0, 3),
        (1, 1),
        "VALID",
        rhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return found[:, : shape[0], : shape[1]].transpose(1, 2, 0, 3)


valid_conv.defvjp(_valid_forward, _valid_backward)
