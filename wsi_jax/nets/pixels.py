"""Standardisation of pixels, the first line of every trunk."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

RGB = tuple[float, float, float]


def standardise(
    x: Num[Array, "b h w 3"], mean: RGB, std: RGB, dtype: DTypeLike
) -> Float[Array, "b h w 3"]:
    """Subtracts the mean colour and divides by its deviation, in float32 at least.

    Args:
        x: pixels, 0 to 255 in any dtype: floats are not scaled to 1.
        mean: mean of red, green, blue in the pretraining images, where white is 1.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    mean, std = (255 * jnp.array(v, wide)[None, None, None] for v in (mean, std))
    return ((x.astype(wide) - mean) / std).astype(dtype)
