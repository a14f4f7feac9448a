"""Random keys of slides: what a slide draws depends on nothing else in its batch."""

import jax
from jaxtyping import Array, Key


def slide_keys(key: Key[Array, ""], count: int) -> Key[Array, " b"]:
    """A key for each slide of a batch, whatever device it lies on."""
    return jax.random.split(key, count)


def halves(keys: Key[Array, " b"]) -> tuple[Key[Array, " b"], Key[Array, " b"]]:
    """Two keys in place of each."""
    return jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
