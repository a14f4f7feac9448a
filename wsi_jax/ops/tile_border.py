"""What lies above a tile and on its left, and its part in the results of windows.

Of a window's result on a tile only the first rows and columns depend on the neighbours.
So on a TPU the window is computed on the tile alone, and on the border alone, and the
two are joined there: no map is copied to make room for its border. Elsewhere that costs
more than the copy does: a GPU's convolutions take no padding on one side, for which the
map would be copied too, and a CPU has no arithmetic to spare for the border.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Num

Borders = Sequence[Num[Array, "b _ _ d"] | None]


IN_PARTS = ("tpu",)  # platforms


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


def window_behind(
    x: Num[Array, "b h w d"],
    borders: Borders,
    window: tuple[int, int],
    padding: Sequence[tuple[int, int]],
    op: Callable,
    reduction: Reduction,
) -> Num[Array, "b y x e"]:
    """A window over a map behind its borders.

    Args:
        borders: positions above the map, and those on its left, the corner with them;
            each may be None.
        window: (size, stride).
        padding: positions before and after the map along each axis; those before it are
            its border's, where it has one.
        op: (map, padding) -> map, where what is padded has no effect.
    """
    if all(border is None for border in borders):
        return op(x, padding)
    in_parts = lambda x, *borders: _in_parts(x, borders, window, padding, op, reduction)
    in_one_map = lambda x, *borders: _in_one_map(x, borders, padding, op)
    in_parts_on = dict.fromkeys(IN_PARTS, in_parts)
    return lax.platform_dependent(x, *borders, default=in_one_map, **in_parts_on)


def _in_parts(x, borders, window, padding, op, reduction):
    k, s = window
    y, parts = op(x, padding), []
    for axis, border in enumerate(borders):
        if border is None:
            parts.append(None)
            continue
        # Outputs that the border has a part in.
        n = border.shape[1 + axis]
        first = min(-(-n // s), y.shape[1 + axis])
        around = list(padding)
        around[axis] = 0, (first - 1) * s + k - n
        if axis == 1 and borders[0] is not None:  # the column has the corner's rows
            around[0] = 0, padding[0][1]
        parts.append(op(border, around))
    return reduction.combine(y, *parts)


def _in_one_map(x, borders, padding, op):
    padding = list(padding)
    for axis, border in enumerate(borders):
        if border is not None:
            x = jnp.concatenate([border, x], 1 + axis)
            padding[axis] = 0, padding[axis][1]
    return op(x, padding)


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
