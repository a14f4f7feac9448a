"""What an updater of rows gets wrong, once a tile like them was zoomed into."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from wsi_jax.ops.zoom_env import Rules, unit


def miss(
    update: Callable,
    z: Float[Array, "n d"],
    v: Float[Array, "n d"],
    mask: Bool[Array, " n"],
    tiles: Int[Array, " m"],
    rules: Rules,
    *,
    itself: bool,
    chunk: int,
) -> Float[Array, ""]:
    """Mean squared error of the rows of a slide that zooming into a tile updates.

    Of each tile the mean over the rows like it, and of these the mean over the tiles
    that have any.

    Args:
        update: (v [d], z [d], rows [n d]) -> [n d], as for `ops.zoom.step`.
        z: each tile at low resolution.
        v: each tile at high resolution.
        mask: True where there is a tile.
        tiles: that are zoomed into, each by itself.
        rules: by which tiles are alike.
        itself: whether a tile is like itself.
        chunk: tiles zoomed into at a time.
    """
    # Not only what is told behind the mask counts for nothing, but its gradient too.
    z, v = (jnp.where(mask[:, None], rows, 0) for rows in (z, v))
    units, at = unit(z), jnp.arange(len(z))

    def one(tile):
        cos = jnp.matmul(units, units[tile], precision="highest")
        cos = cos if rules.signed else jnp.abs(cos)
        alike = (cos >= rules.tau) & mask & mask[tile]
        alike &= itself | (at != tile)
        wrong = ((update(v[tile], z[tile], z) - v) ** 2).mean(-1)
        return jnp.where(alike, wrong, 0).sum(), alike.sum()

    total, count = lax.map(one, tiles, batch_size=chunk)
    each = total / jnp.maximum(count, 1)
    return each.sum() / jnp.maximum((count > 0).sum(), 1)
