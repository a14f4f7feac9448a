"""Convolutions, without the naive loops of XLA's CPU compiler."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

SMALL_MAP_PX = (
    256  # pixels of a map whose depthwise convolution is a matrix per channel
)


def conv(
    x: Float[Array, "b h w d"],
    kernel: Float[Array, "i j d_g e"],
    stride: int,
    padding: int,
) -> Float[Array, "b y x e"]:
    """Convolution (cross-correlation), zero-padded; grouped by the kernel's shape.

    XLA compiles depthwise convolutions to naive loops on a CPU; on small maps this one
    is a matrix product for each channel there, some 30 times faster at 8x8.
    """
    if _depthwise(x, kernel) and x.shape[1] * x.shape[2] <= SMALL_MAP_PX:
        return _small_depthwise(x, kernel, stride, padding)
    return _padded(x, kernel, stride, padding)


def _padded(x, kernel, stride, padding):
    return _stock(x, kernel, stride, ((padding, padding), (padding, padding)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _small_depthwise(x, kernel, stride, padding):
    sizes = {"stride": stride, "padding": padding}
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_by_matrices, **sizes),
        default=functools.partial(_padded, **sizes),
    )


def _small_forward(x, kernel, stride, padding):
    return _small_depthwise(x, kernel, stride, padding), (x, kernel)


def _small_backward(stride, padding, saved, dy):
    """Computes the matrices again rather than keep them."""

    def back(conv, x, kernel, dy):
        conv = functools.partial(conv, stride=stride, padding=padding)
        to_x = jax.linear_transpose(lambda x: conv(x, kernel), x)
        to_kernel = jax.linear_transpose(lambda kernel: conv(x, kernel), kernel)
        return *to_x(dy), *to_kernel(dy)

    on_cpu, default = (functools.partial(back, f) for f in (_by_matrices, _padded))
    return lax.platform_dependent(*saved, dy, cpu=on_cpu, default=default)


_small_depthwise.defvjp(_small_forward, _small_backward)


def _by_matrices(x, kernel, stride, padding):
    """Depthwise convolution as one matrix product per channel, from map to map."""
    b, *size, d = x.shape
    taps = kernel.shape[:2]
    out = [(n + 2 * padding - k) // stride + 1 for n, k in zip(size, taps, strict=True)]
    # Index of the kernel's tap on a pixel [in] in the window of another [out].
    at = np.indices(size).reshape(2, 1, -1) + padding
    at = at - stride * np.indices(out).reshape(2, -1, 1)
    meet = ((at >= 0) & (at < np.reshape(taps, (2, 1, 1)))).all(0)
    places = np.where(meet, at[0] * taps[1] + at[1], taps[0] * taps[1])
    # Its gradient adds up many numbers: in bfloat16 they would be lost.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    flat = jnp.pad(kernel.reshape(-1, d).astype(wide), ((0, 1), (0, 0)))
    y = jnp.einsum("oid,bid->bod", flat[places], x.reshape(b, -1, d).astype(wide))
    return y.reshape(b, *out, d).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _padded_conv(x, kernel, stride, padding):
    return _conv_on_tile(x, kernel, stride, padding)


def padded_conv(
    x: Float[Array, "b h w d"],
    kernel: Float[Array, "i j d_g e"],
    stride: int,
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "b y x e"]:
    """Convolution (cross-correlation) in the body of a loop, zero-padded.

    XLA's CPU compiler makes naive loops of the gradient of a kernel in the body of a
    loop, and of any depthwise convolution; for a CPU both are written differently here.

    Args:
        padding: positions before and after the map along each axis; where negative,
            the map is cut.
    """
    return _padded_conv(x, kernel, stride, tuple(map(tuple, padding)))


def _stock(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _conv_on_tile(x, kernel, stride, padding):
    stock = functools.partial(_stock, stride=stride, padding=padding)
    if not _depthwise(x, kernel):
        return stock(x, kernel)
    taps = lambda x, kernel: _taps(pad_or_cut(x, padding), kernel, stride)
    return lax.platform_dependent(x, kernel, cpu=taps, default=stock)


def pad_or_cut(x, padding):
    """x with zeros around it; less of it where a width is negative."""
    widths = [(0, 0, 0), *((*width, 0) for width in padding), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), widths)


def _depthwise(x, kernel):
    return kernel.shape[2] == 1 < x.shape[-1] == kernel.shape[3]


def _tap_parts(x, kernel, stride):
    """For each tap (i, j) of the kernel, the part of x that it multiplies."""
    sizes = zip(x.shape[1:3], kernel.shape[:2], strict=True)
    height, width = (stride * ((n - k) // stride) + 1 for n, k in sizes)
    for i, j in np.ndindex(kernel.shape[:2]):
        yield (i, j), x[:, i : i + height : stride, j : j + width : stride]


def _taps(x, kernel, stride):
    """Depthwise convolution as a sum over the taps of the kernel."""
    return sum(
        part * kernel[i, j, 0][None, None, None]
        for (i, j), part in _tap_parts(x, kernel, stride)
    )


def _padded_forward(x, kernel, stride, padding):
    return _conv_on_tile(x, kernel, stride, padding), (x, kernel)


def _padded_backward(stride, padding, saved, dy):
    x, kernel = saved
    depthwise, dense = _depthwise(x, kernel), kernel.shape[2] == x.shape[-1]
    to_x = lambda kernel, dy: jax.linear_transpose(
        lambda x: _stock(x, kernel, stride, padding), x
    )(dy)[0]
    to_kernel = lambda x, dy: jax.linear_transpose(
        lambda kernel: _stock(x, kernel, stride, padding), kernel
    )(dy)[0]
    dx = to_x(kernel, dy)
    if depthwise and stride == 1:
        back = functools.partial(_depthwise_back, padding)
        dx = lax.platform_dependent(kernel, dy, cpu=back, default=to_x)
    if depthwise or dense:
        gradient = _depthwise_gradient if depthwise else _kernel_gradient
        on_cpu = functools.partial(gradient, kernel, stride, padding)
        to_kernel = functools.partial(
            lax.platform_dependent, cpu=on_cpu, default=to_kernel
        )
    return dx, to_kernel(x, dy)


def _depthwise_back(padding, kernel, dy):
    """Gradient of x at stride 1: dy convolved with the flipped kernel."""
    ends = [(k - 1, k - 1) for k in kernel.shape[:2]]
    ends = [(a - c, b - d) for (a, b), (c, d) in zip(ends, padding, strict=True)]
    return _taps(pad_or_cut(dy, ends), kernel[::-1, ::-1], 1)


def _depthwise_gradient(kernel, stride, padding, x, dy):
    """Gradient of a depthwise kernel: one sum over the map for each tap."""
    sums = [
        jnp.einsum("byxd,byxd->d", part, dy)
        for _, part in _tap_parts(pad_or_cut(x, padding), kernel, stride)
    ]
    return jnp.stack(sums).reshape(kernel.shape)


def _kernel_gradient(kernel, stride, padding, x, dy):
    """Gradient of a kernel as a convolution of x by dy, channels and images swapped."""
    gradient = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        dy.transpose(1, 2, 0, 3),
        (1, 1),
        padding,
        rhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    height, width = kernel.shape[:2]
    return gradient[:, :height, :width].transpose(1, 2, 0, 3)


_padded_conv.defvjp(_padded_forward, _padded_backward)
