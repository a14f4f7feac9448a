"""Random keys of slides: what a slide draws depends on nothing else in its batch."""

import jax
from jaxtyping import Array, Key

SLIDES = 0x511DE5


def slide_keys(key: Key[Array, ""], count: int) -> Key[Array, " b"]:
    """A key for each slide of a batch, whatever device it lies on."""
    # Of a root of their own: split(key)[i] is what fold_in(key, i) is.
    return jax.random.split(jax.random.fold_in(key, SLIDES), count)


def halves(keys: Key[Array, " b"]) -> tuple[Key[Array, " b"], Key[Array, " b"]]:
    """Two keys in place of each."""
    return jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
