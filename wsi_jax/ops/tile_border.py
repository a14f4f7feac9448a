"""What lies above a tile and on its left, and its part in the results of windows.

Of a window's result on a tile only the first rows and columns depend on the neighbours.
So the window is computed on the tile alone, and on the border alone, and the two are
joined there: no map is copied to make room for its border.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class BorderedOp(NamedTuple):
    """How a window's result on a map takes in that on the border before it.

    Attributes:
        fill: what has no effect on the result.
        join: (result, that of the border, for the first rows or columns) -> result.
    """

    fill: float
    join: Callable


@jax.custom_vjp
def _add_border(y, border):
    return y + _widened_to(y, border, 0.0)


def _add_border_forward(y, border):
    return _add_border(y, border), border


def _add_border_backward(border, dy):
    return dy, _first(dy, border)


def _first(dy, border):
    """The part of a gradient that belongs to a border.

    Behind a barrier, or XLA reads all of dy again wherever it needs this part.
    """
    return lax.optimization_barrier(dy[:, : border.shape[1], : border.shape[2]])


_add_border.defvjp(_add_border_forward, _add_border_backward)


@jax.custom_vjp
def _max_border(y, border):
    return jnp.maximum(y, _widened_to(y, border, -jnp.inf))


def _max_border_forward(y, border):
    first = y[:, : border.shape[1], : border.shape[2]]
    return _max_border(y, border), border >= first


def _max_border_backward(won, dy):
    """Of equal maxima the earlier gets the gradient, as within one window."""
    first = _first(dy, won)
    to_border = jnp.where(won, first, jnp.zeros_like(first))
    return dy - _widened_to(dy, to_border, 0.0), to_border


_max_border.defvjp(_max_border_forward, _max_border_backward)
SUM = BorderedOp(0.0, _add_border)
MAX = BorderedOp(-jnp.inf, _max_border)


def _widened_to(y, border, fill):
    rest = [(0, n - m) for n, m in zip(y.shape, border.shape, strict=True)]
    return jnp.pad(border, rest, constant_values=jnp.asarray(fill, y.dtype))


def last_positions(before, x, n, axis):
    """The last n positions of two maps in a row, the second nearly always enough."""
    if (short := n - x.shape[axis]) > 0:
        before = lax.slice_in_dim(before, before.shape[axis] - short, None, axis=axis)
        return jnp.concatenate([before, x], axis)
    return lax.slice_in_dim(x, x.shape[axis] - n, None, axis=axis)


def pad_or_cut(x, padding):
    """x with zeros around it; less of it where a width is negative."""
    widths = [(0, 0, 0), *((*width, 0) for width in padding), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), widths)
