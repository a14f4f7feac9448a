"""Contrastive losses: two views of one thing alike, those of two things not."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def nt_xent(
    views: Float[Array, "b 2 d"], mask: Bool[Array, " b"], temperature: float
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Normalised, temperature-scaled cross entropy (Chen et al. 2020, eq. 1).

    Each view is to tell its other view from the views of all other tiles, by the cosine
    between them; b counts the tiles of the whole batch, on however many devices.

    Args:
        views: projections of the two views of each tile, of any length.
        mask: True where there is a tile; others are nobody's negatives.
        temperature: that cosines are divided by.

    Returns:
        The loss of each tile, the mean of its two views', and the share of them whose
        likest view is the other one; 0 where there is no tile.
    """
    b, _, d = views.shape
    views = views.astype(jnp.promote_types(views.dtype, jnp.float32))
    views = jnp.where(mask[:, None, None], views, 0)
    # The floor keeps a view of no length, and the gradient there, a number.
    scale = jax.lax.rsqrt(jnp.maximum((views**2).sum(-1, keepdims=True), 1e-12))
    rows = (views * scale).reshape(2 * b, d)
    place = jnp.arange(2 * b)
    other = place ^ 1
    mine = place[None] == other[:, None]
    rest = jnp.repeat(mask, 2)[None] & (place[None] // 2 != place[:, None] // 2)
    logits = rows @ rows.T / temperature
    logits = jnp.where(mine | rest, logits, -jnp.inf)
    right = jnp.where(mine, logits, 0).sum(-1)
    losses = jax.nn.logsumexp(logits, -1) - right
    found = (logits.argmax(-1) == other).astype(losses.dtype)
    of_tiles = lambda each: jnp.where(mask, each.reshape(b, 2).mean(-1), 0)
    return of_tiles(losses), of_tiles(found)
