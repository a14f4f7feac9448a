"""Position embeddings of patches: learned ones on another grid, and rotary ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def resize_positions(
    grid: Float[Array, "h w d"], y: int, x: int
) -> Float[Array, "y x d"]:
    """Resizes learned positions to a grid of y by x patches.

    Bicubic (Keys 1981, a = -1/2), antialiased where the grid shrinks, as in timm.
    """
    if grid.shape[:2] == (y, x):
        return grid
    return jax.image.resize(grid, (y, x, grid.shape[2]), "cubic", antialias=True)


def rotary_angles(y: int, x: int, d: int, base: float = 100.0) -> Float[Array, "n d_2"]:
    """Rotary angles of the patches of a grid, row by row.

    As in DINOv3 (Siméoni et al. 2025): centres of patches, in [-1, 1] along either
    side, times 2 pi over periods from 1 towards `base`; the row's angles, then the
    column's.

    Args:
        d: size of a head, a multiple of 4.
        base: ratio of the longest period to the shortest, at most.
    """
    if d % 4:
        raise ValueError(f"heads of {d} numbers: rotary positions take a multiple of 4")
    periods = base ** (jnp.arange(d // 4) / (d // 4))
    centres = lambda n: (2 * jnp.arange(n) + 1) / n - 1
    rows, columns = jnp.meshgrid(centres(y), centres(x), indexing="ij")
    turns = jnp.stack([rows, columns], -1).reshape(-1, 2, 1) / periods[None, None]
    return 2 * jnp.pi * turns.reshape(y * x, -1)


def apply_rotary(
    tokens: Float[Array, "b h t d"], angles: Float[Array, "n d_2"]
) -> Float[Array, "b h t d"]:
    """Rotates the last n tokens by their rotary angles; those before them stay.

    Channel i of a head is paired with channel i + d / 2 (Su et al. 2021, eq. 34, in
    halves). At least in float32.
    """
    prefix = tokens.shape[2] - angles.shape[0]
    wide = tokens[:, :, prefix:].astype(jnp.promote_types(tokens.dtype, jnp.float32))
    cos, sin = (f(angles)[None, None] for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(wide, 2, -1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return jnp.concatenate([tokens[:, :, :prefix], turned.astype(tokens.dtype)], 2)
