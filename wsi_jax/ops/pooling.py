"""Pooling a bag of tiles into one vector per slide, exactly, in bounded memory."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Num


class Attended(NamedTuple):
    """What attention made of the bags.

    Attributes:
        pooled: [b k d], one vector per slide and branch of attention.
        logits: [b k n], float32, before the softmax; meaningless where masked.
    """

    pooled: Float[Array, "b k d"]
    logits: Float[Array, "b k n"]


class Maximum(NamedTuple):
    """The greatest features of the bags.

    Attributes:
        pooled: [b d].
        winner: [b d], the tile that gave each feature.
    """

    pooled: Float[Array, "b d"]
    winner: Int[Array, "b d"]


def masked_softmax(
    logits: Float[Array, "*b n"], mask: Bool[Array, "*#b n"]
) -> Float[Array, "*b n"]:
    """Softmax over the unmasked, in float32; zeros where a row has none."""
    logits = jnp.where(mask, logits.astype(_at_least_float32(logits.dtype)), -jnp.inf)
    top = lax.stop_gradient(logits.max(-1, keepdims=True))
    w = jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0))
    total = w.sum(-1, keepdims=True)
    return w / jnp.where(total > 0, total, 1)


def moments(
    x: Num[Array, "b n f"], mask: Bool[Array, "b n"]
) -> tuple[Float[Array, " f"], Float[Array, " f"]]:
    """Mean and standard deviation of each feature over all tiles of all slides.

    A feature that never varies has deviation 1, so that dividing by it is safe.
    """
    x = jnp.where(mask[..., None], x, 0).astype(_at_least_float32(x.dtype))
    count = jnp.maximum(mask.sum(), 1)
    mean = x.sum((0, 1)) / count
    away = jnp.where(mask[..., None], x - mean[None, None], 0)
    std = jnp.sqrt((away**2).sum((0, 1)) / count)
    return mean, jnp.where(std > 1e-6 * jnp.abs(mean), std, 1)


def attend(
    embed: Callable,
    x: Num[Array, "b n f"],
    mask: Bool[Array, "b n"],
    *,
    chunk: int,
    key: Key[Array, ""] | None = None,
) -> Attended:
    """Attention pooling, `softmax(logits) @ h`, at the memory of `chunk` tiles.

    Equals embedding the bag at once, in value and gradient (Ilse et al. 2018, eq. 7).
    The softmax is kept online: a running maximum, numerator and denominator
    (Milakov & Gimelshein 2018); `checkpoint` embeds each chunk again on the way back,
    so what is kept per chunk is one pooled vector. One chunk is embedded once.

    Args:
        embed: (x [b m f], key) -> (h [b m d], logits [b m k]); of each tile by itself.
        x: the bags' tiles; what stands behind the mask, NaN included, has no effect.
        mask: True where there is a tile.
        chunk: tiles embedded at a time.
        key: for `embed`'s dropout, folded with the chunk's number.
    """
    b, n, _ = x.shape
    out, weights = jax.eval_shape(embed, x[:, :1], key)
    k, d, dtype = weights.shape[-1], out.shape[-1], _at_least_float32(weights.dtype)
    start = (
        jnp.full((b, k), jnp.finfo(dtype).min, dtype),
        jnp.zeros((b, k), dtype),
        jnp.zeros((b, k, d), dtype),
    )

    def absorb(carry, x, mask, key):
        top, total, pooled = carry
        h, logits = embed(jnp.where(mask[..., None], x, 0), key)
        logits = jnp.swapaxes(logits, 1, 2).astype(dtype)
        there = jnp.where(mask[:, None], logits, jnp.finfo(dtype).min)
        higher = jnp.maximum(top, lax.stop_gradient(there.max(-1)))
        fade = jnp.exp(top - higher)
        w = jnp.where(mask[:, None], jnp.exp(there - higher[..., None]), 0)
        total = total * fade + w.sum(-1)
        seen = jnp.einsum("bkn,bnd->bkd", w, h.astype(dtype))
        return (higher, total, pooled * fade[..., None] + seen), logits

    (_, total, pooled), logits = _over_chunks(absorb, start, x, mask, chunk, key)
    pooled /= jnp.where(total > 0, total, 1)[..., None]
    return Attended(pooled, jnp.concatenate(logits, -1)[..., :n])


def maximum(
    embed: Callable,
    x: Num[Array, "b n f"],
    mask: Bool[Array, "b n"],
    *,
    chunk: int,
    key: Key[Array, ""] | None = None,
) -> Maximum:
    """The greatest value of each feature over a slide's tiles, chunk by chunk.

    Equal to the dense maximum in value and gradient; of equal tiles the first wins.

    Args:
        embed: (x [b m f], key) -> h [b m d].
        x: the bags' tiles.
        mask: True where there is a tile; a slide without one pools to zero.
        chunk: tiles embedded at a time.
        key: for `embed`'s dropout, folded with the chunk's number.
    """
    out = jax.eval_shape(embed, x[:, :1], key)
    b, d, dtype = x.shape[0], out.shape[-1], _at_least_float32(out.dtype)
    start = (
        jnp.full((b, d), -jnp.inf, dtype),
        jnp.zeros((b, d), jnp.int32),
        jnp.zeros((), jnp.int32),
    )

    def absorb(carry, x, mask, key):
        best, winner, first = carry
        h = embed(jnp.where(mask[..., None], x, 0), key).astype(dtype)
        h = jnp.where(mask[..., None], h, -jnp.inf)
        here = h.argmax(1)
        value = jnp.take_along_axis(h, here[:, None], 1)[:, 0]
        better = value > best
        winner = jnp.where(better, first + here.astype(jnp.int32), winner)
        carry = jnp.where(better, value, best), winner, first + x.shape[1]
        return carry, None

    (best, winner, _), _ = _over_chunks(absorb, start, x, mask, chunk, key)
    return Maximum(jnp.where(jnp.isfinite(best), best, 0), winner)


def instance_loss(
    judge: Callable,
    logits: Float[Array, "b k n"],
    mask: Bool[Array, "b n"],
    label: Int[Array, " b"],
    *,
    n_classes: int,
    sampled: int,
    subtyping: bool,
) -> Float[Array, " b"]:
    """CLAM's clustering of the most and least attended tiles (Lu et al. 2021, eq. 5-6).

    Under the true class's clustering layer the `sampled` most attended tiles are
    positive and the `sampled` least attended negative. With `subtyping` (classes
    exclude each other) the most attended tiles of every other class are negative under
    its layer, and the sum is divided by the number of classes. The choice has no
    gradient.

    Args:
        judge: indices [b s] -> logits [b s c 2] of those tiles under every layer.
        logits: attention before the softmax, one branch, or one for each class.
        mask: True where there is a tile; a slide with fewer than `sampled` gives all.
        label: the slide's class.
        n_classes: c.
        sampled: tiles taken from each end.
        subtyping: whether the other classes' layers learn too.
    """
    sampled = min(sampled, mask.shape[-1])
    logits = lax.stop_gradient(logits)
    mine = jax.nn.one_hot(label, n_classes, dtype=bool)
    there = jnp.arange(sampled)[None] < mask.sum(-1, keepdims=True)

    def loss_of(c: int) -> Float[Array, " b"]:
        branch = logits[:, min(c, logits.shape[1] - 1)]
        top = lax.top_k(jnp.where(mask, branch, -jnp.inf), sampled)[1]
        low = lax.top_k(jnp.where(mask, -branch, -jnp.inf), sampled)[1]
        verdict = jax.nn.log_softmax(judge(jnp.concatenate([top, low], 1))[:, :, c])
        high, low = jnp.split(verdict, 2, axis=1)
        count = jnp.maximum(there.sum(-1), 1)
        mean = lambda surprise: jnp.where(there, -surprise, 0).sum(-1) / count
        inside = (mean(high[..., 1]) + mean(low[..., 0])) / 2
        outside = mean(high[..., 0]) if subtyping else jnp.zeros_like(inside)
        return jnp.where(mine[:, c], inside, outside)

    total = sum(loss_of(c) for c in range(n_classes))
    return total / n_classes if subtyping else total


def _at_least_float32(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _over_chunks(absorb, carry, x, mask, chunk, key):
    """Feeds `absorb` chunk by chunk; returns the last carry and the list of outputs."""
    n = x.shape[1]
    if n <= chunk:
        carry, out = absorb(carry, x, mask, key)
        return carry, [out]
    whole, rest = divmod(n, chunk)

    # A slice in the body, not a reshape before the loop: the bag is never copied.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(carry, i, x, mask):
        part = lambda a: lax.dynamic_slice_in_dim(a, i * chunk, chunk, 1)
        folded = None if key is None else jax.random.fold_in(key, i)
        return absorb(carry, part(x), part(mask), folded)

    carry, out = lax.scan(
        lambda carry, i: body(carry, i, x, mask), carry, jnp.arange(whole)
    )
    outs = []
    if out is not None:
        outs = [jnp.moveaxis(out, 0, -2).reshape(*out.shape[1:-1], whole * chunk)]
    if rest:
        last = None if key is None else jax.random.fold_in(key, whole)
        tail = jax.checkpoint(absorb)
        carry, out = tail(carry, x[:, whole * chunk :], mask[:, whole * chunk :], last)
        outs.append(out)
    return carry, outs
