"""The operations on maps that trunks are built of, and their dense form."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from wsi_jax.ops.convolution import conv

# An array [b h w d] to DENSE; to other operations, what they take for one.
Map = Any


class Ops(NamedTuple):
    """Operations of a trunk on maps, so that one trunk runs dense or tile by tile.

    Attributes:
        conv: (map, kernel [i j d/g e], stride, padding) -> map, zero-padded; in g
            groups of channels where the kernel has d/g of the map's d.
        max_pool: (map, size, stride, padding, ceil=False) -> map, padded with -inf;
            with `ceil` a last window that is only partly in the map counts too.
        add: (map, map) -> map, for maps of one shape.
        relu: map -> map.
        each: (f, map) -> map, where f works position by position.
        whole: (f, map) -> map, where f needs the whole map at once.
    """

    conv: Callable
    max_pool: Callable
    add: Callable
    relu: Callable
    each: Callable
    whole: Callable


def max_pool(
    x: Float[Array, "b h w d"],
    size: int,
    stride: int,
    padding: int,
    ceil: bool = False,
) -> Float[Array, "b y x d"]:
    """Maximum of each window; padding never wins."""
    more = [-(n + 2 * padding - size) % stride * ceil for n in x.shape[1:3]]
    return window_max(x, size, stride, [(padding, padding + m) for m in more])


def window_max(
    x: Float[Array, "b h w d"],
    size: int,
    stride: int,
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "b y x d"]:
    """Maximum of each window of a padded map; padding never wins.

    Args:
        padding: positions before and after the map along each axis; where negative,
            the map is cut.
    """
    for axis, (before, after) in enumerate(padding, start=1):
        end = x.shape[axis] + min(after, 0)
        x = lax.slice_in_dim(x, max(-before, 0), end, axis=axis)
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    edges = ((0, 0), *((max(a, 0), max(b, 0)) for a, b in padding), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, edges)


@jax.custom_vjp
def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0). Its gradient needs only the result, which the next layer keeps."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    # Behind a barrier, or XLA keeps x too, and takes its maximum wherever y is read.
    y = lax.optimization_barrier(relu(x))
    return y, y


relu.defvjp(_relu_forward, lambda y, dy: (jnp.where(y > 0, dy, jnp.zeros_like(dy)),))


def apply(f: Callable, x: Array) -> Array:
    """f(x), for dense maps."""
    return f(x)


DENSE = Ops(
    conv=conv, max_pool=max_pool, add=jnp.add, relu=relu, each=apply, whole=apply
)
