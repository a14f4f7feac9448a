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


class Reduction(NamedTuple):
    """How windows reduce what they cover, and how that is done in parts.

    Attributes:
        identity: what has no effect on the result.
        combine: (result of the map, that of the border above for the first rows, that
            of the border on the left for the first columns) -> result of all; borders
            may be None.
    """

    identity: float
    combine: Callable


@jax.custom_vjp
def _sum(y, above, left):
    for border in (above, left):
        y = y if border is None else y + _widened_to(y, border, 0.0)
    return y


def _sum_forward(y, above, left):
    return _sum(y, above, left), (above, left)


def _sum_backward(borders, dy):
    return dy, *(None if border is None else _first(dy, border) for border in borders)


@jax.custom_vjp
def _max(y, above, left):
    for border in (above, left):
        y = y if border is None else jnp.maximum(y, _widened_to(y, border, -jnp.inf))
    return y


def _max_forward(y, above, left):
    # By slices of y alone: what else read a map between would have it written.
    above_won = None if above is None else above >= _part(y, above)
    left_won = None
    if left is not None:
        first = _part(y, left)
        if above is not None:
            corner = above[:, :, : left.shape[2]]
            first = jnp.maximum(first, _widened_to(first, corner, -jnp.inf))
        left_won = left >= first
    return _max(y, above, left), (above_won, left_won)


def _max_backward(won, dy):
    """Of equal maxima one gets the gradient: the left border's, else that above.

    Not always that of the dense net, which takes the first in its window. Either is a
    subgradient, and where a ReLU's zeros are equal it makes no difference.
    """
    above_won, left_won = won
    above = left = None
    rest = dy
    if left_won is not None:
        left = _won(left_won, _first(dy, left_won))
        rest = rest - _widened_to(dy, left, 0.0)
    if above_won is not None:
        first = _first(dy, above_won)
        if left is not None:
            corner = left[:, : first.shape[1]]
            first = first - _widened_to(first, corner, 0.0)
        above = _won(above_won, first)
        rest = rest - _widened_to(dy, above, 0.0)
    return rest, above, left


_sum.defvjp(_sum_forward, _sum_backward)
_max.defvjp(_max_forward, _max_backward)
SUM, MAX = Reduction(0.0, _sum), Reduction(-jnp.inf, _max)


def _part(y, border):
    return y[:, : border.shape[1], : border.shape[2]]


def _first(dy, border):
    """The part of a gradient that belongs to a border.

    Behind a barrier, or XLA reads all of dy again wherever it needs this part.
    """
    return lax.optimization_barrier(_part(dy, border))


def _won(mask, dy):
    return jnp.where(mask, dy, jnp.zeros_like(dy))


def _widened_to(y, border, fill):
    rest = [(0, n - m) for n, m in zip(y.shape, border.shape, strict=True)]
    return jnp.pad(border, rest, constant_values=jnp.asarray(fill, y.dtype))


def last_positions(before, x, n, axis):
    """The last n positions of two maps in a row, the second nearly always enough."""
    if (short := n - x.shape[axis]) > 0:
        before = lax.slice_in_dim(before, before.shape[axis] - short, None, axis=axis)
        return jnp.concatenate([before, x], axis)
    return lax.slice_in_dim(x, x.shape[axis] - n, None, axis=axis)
