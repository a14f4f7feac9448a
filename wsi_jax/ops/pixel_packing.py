"""Pixels packed: squares of them side by side in the channels of one position.

A first convolution that takes every second pixel is on accelerators mostly idle: three
channels fill few of their lanes. On pixels in squares of 2 x 2 it has twelve channels,
a quarter of the positions, and stride 1; the result is the same.
"""

import numpy as np
from einops import rearrange
from jax import numpy as jnp
from jaxtyping import Array, Float, Num


def pack(pixels: Num[np.ndarray, "b h w d"], side: int) -> Num[np.ndarray, "b y x e"]:
    """Squares of `side` x `side` pixels as the channels of one position.

    Whole rows of a square are moved at once, which is faster than einops.
    """
    b, h, w, d = pixels.shape
    row = np.dtype((np.void, side * d * pixels.itemsize))
    rows = np.ascontiguousarray(pixels).reshape(b, h, w * d).view(row)
    squares = rows.reshape(b, h // side, side, w // side).swapaxes(2, 3)
    packed = np.ascontiguousarray(squares).view(pixels.dtype)
    return packed.reshape(b, h // side, w // side, side * side * d)


def unpack(x: Num[Array | np.ndarray, "b y x e"], side: int):
    """The inverse of `pack`: pixels [b h w d]."""
    squares = "b y x (i j d) -> b (y i) (x j) d"
    return rearrange(x, squares, i=side, j=side)


def packed_kernel(
    kernel: Float[Array, "k k d e"], side: int, before: int, taps: int
) -> Float[Array, "t t f e"]:
    """The kernel of stride `side` for packed pixels, where its stride is 1.

    Args:
        before: pixels of its first square that are before its window.
        taps: squares along each axis.
    """
    rest = taps * side - before - kernel.shape[0]
    wide = jnp.pad(kernel, ((before, rest), (before, rest), (0, 0), (0, 0)))
    return rearrange(wide, "(y i) (x j) d e -> y x (i j d) e", i=side, j=side)
