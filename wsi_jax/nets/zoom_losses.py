"""What the nets of SASHA that learn from examples are to make small, on a batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from wsi_jax.nets.hafed import losses
from wsi_jax.nets.sasha import ZoomNets
from wsi_jax.ops.likeness import miss
from wsi_jax.ops.sampling import log_attention
from wsi_jax.ops.zoom_env import Rules
from wsi_jax.types import Bag


def hafed_loss(
    nets: ZoomNets, params: PyTree, batch: Bag, key: Key[Array, ""]
) -> tuple[Float[Array, " b"], dict[str, Float[Array, " b"]]]:
    """HAFED's, on the children of all tiles, some of the best masked."""
    high = nets.standardised(params, batch.x.high)

    def one(key, high, mask, label):
        net = nets.hafed
        draws = net.uniforms(key, len(high)) if net.drop else None
        said = net.apply(params["hafed"], high, mask, draws)
        return losses(said, label, mask), said.logits

    keys = jax.random.split(key, len(batch.target))
    parts, logits = jax.vmap(one)(keys, high, batch.mask, batch.target)
    right = (logits.argmax(-1) == batch.target).astype(jnp.float32)
    return sum(parts), {"accuracy": right, "slide_loss": parts.slide}


def partial_zoom_loss(
    nets: ZoomNets, params: PyTree, batch: Bag, key: Key[Array, ""]
) -> Float[Array, " b"]:
    """HAFED's, on slides of which a share, any, is seen at high resolution."""
    keys = jax.random.split(jax.random.fold_in(key, 1))
    share = jax.random.uniform(keys[0], (len(batch.target), 1))
    zoomed = jax.random.uniform(keys[1], batch.mask.shape) < share
    rows = nets.rows(params, batch.x)
    state = jnp.where(zoomed[..., None], rows.high, rows.low)
    logits, _ = nets.classify(params, state, batch.mask)
    surprise = optax.softmax_cross_entropy_with_integer_labels
    return surprise(logits, batch.target)


def updater_loss(
    nets: ZoomNets,
    params: PyTree,
    batch: Bag,
    key: Key[Array, ""],
    rules: Rules,
    *,
    anchors: int,
    itself: bool,
    chunk: int,
) -> Float[Array, " b"]:
    """The updater's: mean squared error of the rows that it makes, as `ops.likeness`.

    Args:
        nets: of SASHA.
        params: of all that they need.
        batch: of slides.
        key: of the tiles that are zoomed into.
        rules: by which tiles are alike.
        anchors: tiles of a slide that are zoomed into, each by itself.
        itself: whether a tile is like itself.
        chunk: tiles zoomed into at a time.
    """
    update = lambda *x: nets.updater.apply(params["updater"], *x)

    def one(key, z, v, mask):
        chance = jnp.where(mask | ~mask.any(), 0.0, -jnp.inf)
        tiles = jax.random.categorical(key, chance, shape=(anchors,))
        return miss(update, z, v, mask, tiles, rules, itself=itself, chunk=chunk)

    keys = jax.random.split(key, len(batch.target))
    low, high = jax.lax.stop_gradient(nets.rows(params, batch.x))
    return jax.vmap(one)(keys, low, high, batch.mask)


def ranking_loss(
    nets: ZoomNets, params: PyTree, batch: Bag, rank: Callable
) -> Float[Array, " b"]:
    """The ranking's: how far it is from HAFED's attention at high resolution.

    Kullback-Leibler divergence of the softmax of its logits, which it gives to tiles at
    low resolution, from the attention over the same tiles when all are zoomed into.

    Args:
        nets: of rows and of HAFED.
        params: of all.
        batch: slides.
        rank: (params, rows [*m d]) -> logits [*m].
    """
    clean = lambda x: jnp.where(batch.mask[..., None], x, 0)
    rows = jax.lax.stop_gradient(jax.tree.map(clean, nets.rows(params, batch.x)))
    _, wanted = nets.classify(params, rows.high, batch.mask)
    told = jax.vmap(log_attention)(rank(params, rows.low), batch.mask)
    told = jnp.where(batch.mask, told, 0)  # where nothing is wanted
    return optax.losses.kl_divergence(told, jax.lax.stop_gradient(wanted))
