"""Tiles to zoom into that no policy chose: what one is held against."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def ranked(scores: Float[Array, "*b n"]) -> Callable:
    """A choice for `ops.episode.play`: the greatest score of those that are left."""

    def choose(step, log_p):
        del step
        left = jnp.isfinite(log_p)
        return jnp.where(left, scores, -jnp.inf).argmax(-1).astype(jnp.int32)

    return choose


def evenly(mask: Bool[Array, " n"], steps: Int[Array, ""]) -> Float[Array, " n"]:
    """Scores by which `steps` tiles are ranked first that lie evenly among the masked.

    Tiles come row by row: among all of a slide they lie as on a slanted grid.
    """
    place = jnp.cumsum(mask) - 1
    count = jnp.maximum(mask.sum(), 1)
    # Of `count` places those at which the share of the steps passes a whole number.
    passes = lambda i: i * steps // count
    return (mask & (passes(place + 1) > passes(place))).astype(jnp.float32)
