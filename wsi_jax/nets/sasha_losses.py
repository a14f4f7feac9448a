"""Supervised losses of SASHA's nets on a batch: HAFED, updater and ranking."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Key, PyTree

from wsi_jax.nets.classification_loss import classification_loss
from wsi_jax.nets.hafed import hafed_losses
from wsi_jax.nets.sasha import ZoomNets
from wsi_jax.ops import zoom_env
from wsi_jax.ops.sampling import log_attention
from wsi_jax.types import Bag


def hafed_loss(
    nets: ZoomNets, params: PyTree, batch: Bag, keys: Key[Array, " b"]
) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
    """HAFED's loss on the children of all tiles, some of the top masked."""
    high = nets.standardised(params, batch.x.high)

    def one(key, high, mask, label):
        net = nets.hafed
        uniforms = net.uniforms(key, len(high)) if net.mask_rate else None
        output = net.apply(params["hafed"], high, mask, uniforms)
        return hafed_losses(output, label, mask), output.logits

    losses, logits = jax.vmap(one)(keys, high, batch.mask, batch.target)
    _, metrics = classification_loss(logits, batch.target)
    return sum(losses), metrics | {"slide_loss": losses.slide}


def partial_zoom_loss(
    nets: ZoomNets, params: PyTree, batch: Bag, keys: Key[Array, " b"]
) -> Float[Array, " b"]:
    """HAFED's cross-entropy with a random share of the tiles at high resolution."""

    def draw(key):
        share, tiles = jax.random.split(jax.random.fold_in(key, 1))
        n = batch.mask.shape[1]
        return jax.random.uniform(tiles, (n,)) < jax.random.uniform(share)

    at_high = jax.vmap(draw)(keys)
    rows = nets.rows(params, batch.x)
    state = jnp.where(at_high[..., None], rows.high, rows.low)
    logits, _ = nets.classify(params, state, batch.mask)
    return classification_loss(logits, batch.target)[0]


def updater_loss(
    nets: ZoomNets,
    params: PyTree,
    batch: Bag,
    keys: Key[Array, " b"],
    rules: zoom_env.Rules,
    *,
    anchors: int,
    itself: bool,
    chunk: int,
) -> Float[Array, " b"]:
    """Mean squared error of the rows that a zoom updates.

    The mean over the rows similar to a tile, and of these the mean over the tiles that
    have any.

    Args:
        keys: of each slide, draw the tiles that are zoomed into.
        anchors: number of tiles of a slide that are zoomed into, each by itself.
        itself: whether a tile counts as similar to itself.
        chunk: tiles zoomed into at a time.
    """

    def one(key, z, v, mask):
        chance = jnp.where(mask | ~mask.any(), 0.0, -jnp.inf)
        tiles = jax.random.categorical(key, chance, shape=(anchors,))
        # Neither values nor gradients behind the mask may count.
        z, v = (jnp.where(mask[:, None], rows, 0) for rows in (z, v))
        units, index = zoom_env.unit_rows(z), jnp.arange(len(z))

        def zoom(tile):
            cos = jnp.matmul(units, units[tile], precision="highest")
            cos = cos if rules.signed else jnp.abs(cos)
            similar = (cos >= rules.tau) & mask & mask[tile]
            similar &= itself | (index != tile)
            new = nets.updater.apply(params["updater"], v[tile], z[tile], z)
            error = ((new - v) ** 2).mean(-1)
            return jnp.where(similar, error, 0).sum(), similar.sum()

        total, count = lax.map(zoom, tiles, batch_size=chunk)
        each = total / jnp.maximum(count, 1)
        return each.sum() / jnp.maximum((count > 0).sum(), 1)

    low, high = lax.stop_gradient(nets.rows(params, batch.x))
    return jax.vmap(one)(keys, low, high, batch.mask)


def attention_kl_loss(
    nets: ZoomNets, params: PyTree, batch: Bag, rank: Callable
) -> Float[Array, " b"]:
    """Distance of a ranking of tiles from HAFED's attention at high resolution.

    Kullback-Leibler divergence of the softmax of the ranking's logits, for tiles at low
    resolution, from the attention over the same tiles when all are zoomed into.

    Args:
        rank: (params, rows [*m d]) -> logits [*m].
    """
    clean = lambda x: jnp.where(batch.mask[..., None], x, 0)
    rows = lax.stop_gradient(jax.tree.map(clean, nets.rows(params, batch.x)))
    _, attention = nets.classify(params, rows.high, batch.mask)
    log_p = jax.vmap(log_attention)(rank(params, rows.low), batch.mask)
    log_p = jnp.where(batch.mask, log_p, 0)  # -inf behind the mask, where it is 0
    return optax.losses.kl_divergence(log_p, lax.stop_gradient(attention))
