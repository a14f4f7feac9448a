"""Pooling a bag of tiles into one vector per slide, exactly, in bounded memory."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Num

from wsi_jax.ops.attention_weights import Normaliser, log_weights, normalise


class AttentionPooled(NamedTuple):
    """Bags pooled by attention.

    Attributes:
        pooled: [b k d], one vector per slide and branch of attention.
        logits: [b k n], float32, before they are normalised; meaningless where masked.
    """

    pooled: Float[Array, "b k d"]
    logits: Float[Array, "b k n"]


class MaxPooled(NamedTuple):
    """Bags pooled by the maximum of each feature.

    Attributes:
        winner: [b d], index of the tile with the maximum of each feature.
    """

    pooled: Float[Array, "b d"]
    winner: Int[Array, "b d"]


def feature_moments(
    x: Num[Array, "b n f"], mask: Bool[Array, "b n"]
) -> tuple[Float[Array, " f"], Float[Array, " f"]]:
    """Mean and standard deviation of each feature over all tiles of all slides.

    A feature that never varies has deviation 1, so that dividing by it is safe.
    """
    x = jnp.where(mask[..., None], x, 0).astype(_at_least_float32(x.dtype))
    count = jnp.maximum(mask.sum(), 1)
    mean = x.sum((0, 1)) / count
    centred = jnp.where(mask[..., None], x - mean[None, None], 0)
    std = jnp.sqrt((centred**2).sum((0, 1)) / count)
    return mean, jnp.where(std > 1e-6 * jnp.abs(mean), std, 1)


def attention_pool(
    embed: Callable,
    x: Num[Array, "b n f"],
    mask: Bool[Array, "b n"],
    *,
    chunk: int,
    keys: Key[Array, " b"] | None = None,
    normaliser: Normaliser = Normaliser.softmax,
    power: float = 2.0,
) -> AttentionPooled:
    """Attention pooling, `normalise(logits) @ h`, at the memory of `chunk` tiles.

    Equals embedding the bag at once, in value and gradient (Ilse et al. 2018, eq. 7).
    The softmax is kept online (Milakov & Gimelshein 2018); each chunk is embedded again
    on the way back, a single one only once. Sparsemax embeds several chunks twice: no
    weight is known before the last logit.

    Args:
        embed: (x [b m f], keys [b]) -> (h [b m d], logits [b m k]), tile by tile.
        x: tiles of the bags; what stands behind the mask, NaN included, has no effect.
        keys: each slide's, for `embed`'s dropout; folded with the chunk's number.
    """
    b = len(x)
    out, weights = jax.eval_shape(embed, x[:, :1], keys)
    k, d, dtype = weights.shape[-1], out.shape[-1], _at_least_float32(weights.dtype)
    zeros, lowest = jnp.zeros((b, k, d), dtype), jnp.finfo(dtype).min

    def embed_masked(x, mask, keys):
        h, logits = embed(jnp.where(mask[..., None], x, 0), keys)
        return h.astype(dtype), jnp.swapaxes(logits, 1, 2).astype(dtype)

    if normaliser is Normaliser.sparsemax:
        return _pool_in_two_passes(
            embed_masked, zeros, x, mask, chunk=chunk, keys=keys, normaliser=normaliser
        )

    def absorb(carry, keys, x, mask):
        top, total, pooled = carry
        h, logits = embed_masked(x, mask, keys)
        u = jnp.where(mask[:, None], log_weights(logits, normaliser, power), lowest)
        new_top = jnp.maximum(top, lax.stop_gradient(u.max(-1)))
        scale = jnp.exp(top - new_top)
        w = jnp.where(mask[:, None], jnp.exp(u - new_top[..., None]), 0)
        total = total * scale + w.sum(-1)
        pooled = pooled * scale[..., None] + jnp.einsum("bkn,bnd->bkd", w, h)
        return (new_top, total, pooled), logits

    start = jnp.full((b, k), lowest, dtype), jnp.zeros((b, k), dtype), zeros
    (_, total, pooled), logits = _scan_chunks(absorb, start, (x, mask), chunk, keys)
    pooled /= jnp.where(total > 0, total, 1)[..., None]
    return AttentionPooled(pooled, jnp.concatenate(logits, -1))


def max_pool(
    embed: Callable,
    x: Num[Array, "b n f"],
    mask: Bool[Array, "b n"],
    *,
    chunk: int,
    keys: Key[Array, " b"] | None = None,
) -> MaxPooled:
    """Maximum of each feature over a slide's tiles, chunk by chunk.

    Equal to the dense maximum in value and gradient; of equal tiles the first wins.

    Args:
        embed: (x [b m f], keys [b]) -> h [b m d].
        mask: True where there is a tile; a slide without one pools to zero.
    """
    out = jax.eval_shape(embed, x[:, :1], keys)
    b, d, dtype = x.shape[0], out.shape[-1], _at_least_float32(out.dtype)
    start = (
        jnp.full((b, d), -jnp.inf, dtype),
        jnp.zeros((b, d), jnp.int32),
        jnp.zeros((), jnp.int32),
    )

    def absorb(carry, keys, x, mask):
        best, winner, first = carry
        h = embed(jnp.where(mask[..., None], x, 0), keys).astype(dtype)
        h = jnp.where(mask[..., None], h, -jnp.inf)
        index = h.argmax(1)
        value = jnp.take_along_axis(h, index[:, None], 1)[:, 0]
        better = value > best
        winner = jnp.where(better, first + index.astype(jnp.int32), winner)
        carry = jnp.where(better, value, best), winner, first + x.shape[1]
        return carry, None

    (best, winner, _), _ = _scan_chunks(absorb, start, (x, mask), chunk, keys)
    return MaxPooled(jnp.where(jnp.isfinite(best), best, 0), winner)


def map_mean_and_deviation(cells: Float[Array, "b y x d"]) -> Float[Array, "b e"]:
    """Mean of each feature over a map, followed by its standard deviation."""
    cells = cells.astype(_at_least_float32(cells.dtype))
    mean = cells.mean((1, 2), keepdims=True)
    variance = ((cells - mean) ** 2).mean((1, 2))
    return jnp.concatenate([mean[:, 0, 0], jnp.sqrt(variance + 1e-6)], -1)


def _at_least_float32(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _pool_in_two_passes(embed, zeros, x, mask, *, chunk, keys, normaliser):
    """Logits of all tiles first, then the weighted sum: for weights that need all."""
    if x.shape[1] <= chunk:
        h, logits = embed(x, mask, keys)
        w = normalise(logits, mask[:, None], normaliser)
        return AttentionPooled(jnp.einsum("bkn,bnd->bkd", w, h), logits)

    def only_logits(carry, keys, x, mask):
        return carry, embed(x, mask, keys)[1]

    def weighted_sum(pooled, keys, x, mask, w):
        h, _ = embed(x, mask, keys)
        return pooled + jnp.einsum("bnk,bnd->bkd", w, h), None

    # The keys draw the same dropout in both passes.
    _, logits = _scan_chunks(only_logits, (), (x, mask), chunk, keys)
    logits = jnp.concatenate(logits, -1)
    w = jnp.swapaxes(normalise(logits, mask[:, None], normaliser), 1, 2)
    pooled, _ = _scan_chunks(weighted_sum, zeros, (x, mask, w), chunk, keys)
    return AttentionPooled(pooled, logits)


def _scan_chunks(absorb, carry, parts, chunk, keys):
    """Scans `absorb` over chunks of tiles; returns the last carry and all outputs.

    Args:
        absorb: (carry, keys, *parts of a chunk) -> (carry, output [... chunk] or None).
    """
    n = parts[0].shape[1]
    if n <= chunk:
        carry, out = absorb(carry, keys, *parts)
        return carry, [out]
    whole, rest = divmod(n, chunk)

    # A slice in the body, not a reshape before the loop: the bag is never copied.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(carry, i, *parts):
        cut = lambda a: lax.dynamic_slice_in_dim(a, i * chunk, chunk, 1)
        return absorb(carry, _folded(keys, i), *map(cut, parts))

    carry, out = lax.scan(
        lambda carry, i: body(carry, i, *parts), carry, jnp.arange(whole)
    )
    outs = []
    if out is not None:
        outs = [jnp.moveaxis(out, 0, -2).reshape(*out.shape[1:-1], whole * chunk)]
    if rest:
        tail = [a[:, whole * chunk :] for a in parts]
        carry, out = jax.checkpoint(absorb)(carry, _folded(keys, whole), *tail)
        outs.append(out)
    return carry, outs


def _folded(keys, i):
    """The keys of a chunk."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, i)
