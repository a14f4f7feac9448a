"""Pooling a bag of tiles into one vector per slide, exactly, in bounded memory."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Num

from wsi_jax.ops.weights import Normaliser, log_weights, normalise


class Attended(NamedTuple):
    """What attention made of the bags.

    Attributes:
        pooled: [b k d], one vector per slide and branch of attention.
        logits: [b k n], float32, before they are normalised; meaningless where masked.
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
    return normalise(logits, mask)


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
    how: Normaliser = Normaliser.softmax,
    power: float = 2.0,
) -> Attended:
    """Attention pooling, `normalise(logits) @ h`, at the memory of `chunk` tiles.

    Equals embedding the bag at once, in value and gradient (Ilse et al. 2018, eq. 7).
    The softmax is kept online: a running maximum, numerator and denominator
    (Milakov & Gimelshein 2018); `checkpoint` embeds each chunk again on the way back,
    so what is kept per chunk is one pooled vector. One chunk is embedded once. For
    sparsemax several are embedded twice: no weight is known before the last logit.

    Args:
        embed: (x [b m f], key) -> (h [b m d], logits [b m k]); of each tile by itself.
        x: the bags' tiles; what stands behind the mask, NaN included, has no effect.
        mask: True where there is a tile.
        chunk: tiles embedded at a time.
        key: for `embed`'s dropout, folded with the chunk's number.
        how: weights are made of logits.
        power: of the squared average.
    """
    b = len(x)
    out, weights = jax.eval_shape(embed, x[:, :1], key)
    k, d, dtype = weights.shape[-1], out.shape[-1], _at_least_float32(weights.dtype)
    nothing = jnp.zeros((b, k, d), dtype)

    def embedded(x, mask, key):
        h, logits = embed(jnp.where(mask[..., None], x, 0), key)
        return h.astype(dtype), jnp.swapaxes(logits, 1, 2).astype(dtype)

    if how is Normaliser.sparsemax:
        return _attend_twice(embedded, nothing, x, mask, chunk, key, how)
    start = (
        jnp.full((b, k), jnp.finfo(dtype).min, dtype),
        jnp.zeros((b, k), dtype),
        nothing,
    )

    def absorb(carry, key, x, mask):
        top, total, pooled = carry
        h, logits = embedded(x, mask, key)
        u = log_weights(logits, how, power)
        there = jnp.where(mask[:, None], u, jnp.finfo(dtype).min)
        higher = jnp.maximum(top, lax.stop_gradient(there.max(-1)))
        fade = jnp.exp(top - higher)
        w = jnp.where(mask[:, None], jnp.exp(there - higher[..., None]), 0)
        total = total * fade + w.sum(-1)
        seen = jnp.einsum("bkn,bnd->bkd", w, h)
        return (higher, total, pooled * fade[..., None] + seen), logits

    (_, total, pooled), logits = _over_chunks(absorb, start, (x, mask), chunk, key)
    pooled /= jnp.where(total > 0, total, 1)[..., None]
    return Attended(pooled, jnp.concatenate(logits, -1))


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

    def absorb(carry, key, x, mask):
        best, winner, first = carry
        h = embed(jnp.where(mask[..., None], x, 0), key).astype(dtype)
        h = jnp.where(mask[..., None], h, -jnp.inf)
        here = h.argmax(1)
        value = jnp.take_along_axis(h, here[:, None], 1)[:, 0]
        better = value > best
        winner = jnp.where(better, first + here.astype(jnp.int32), winner)
        carry = jnp.where(better, value, best), winner, first + x.shape[1]
        return carry, None

    (best, winner, _), _ = _over_chunks(absorb, start, (x, mask), chunk, key)
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
        logits: attention before it is normalised, one branch, or one for each class.
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


def _attend_twice(embedded, nothing, x, mask, chunk, key, how):
    """For weights that rest on all logits: these first, then the weighted sum."""
    if x.shape[1] <= chunk:
        h, logits = embedded(x, mask, key)
        w = normalise(logits, mask[:, None], how)
        return Attended(jnp.einsum("bkn,bnd->bkd", w, h), logits)

    def see(carry, key, x, mask):
        return carry, embedded(x, mask, key)[1]

    def add(pooled, key, x, mask, w):
        h, _ = embedded(x, mask, key)
        return pooled + jnp.einsum("bnk,bnd->bkd", w, h), None

    # The key draws the same dropout in both.
    _, logits = _over_chunks(see, (), (x, mask), chunk, key)
    logits = jnp.concatenate(logits, -1)
    w = jnp.swapaxes(normalise(logits, mask[:, None], how), 1, 2)
    pooled, _ = _over_chunks(add, nothing, (x, mask, w), chunk, key)
    return Attended(pooled, logits)


def _over_chunks(absorb, carry, parts, chunk, key):
    """Feeds `absorb` chunk by chunk; returns the last carry and the list of outputs.

    Args:
        absorb: (carry, key, *parts of a chunk) -> (carry, output [... chunk] or None).
        carry: before the first chunk.
        parts: arrays [b n ...].
        chunk: tiles at a time.
        key: folded with the chunk's number, or None.
    """
    n = parts[0].shape[1]
    if n <= chunk:
        carry, out = absorb(carry, key, *parts)
        return carry, [out]
    whole, rest = divmod(n, chunk)

    # A slice in the body, not a reshape before the loop: the bag is never copied.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(carry, i, *parts):
        cut = lambda a: lax.dynamic_slice_in_dim(a, i * chunk, chunk, 1)
        folded = None if key is None else jax.random.fold_in(key, i)
        return absorb(carry, folded, *map(cut, parts))

    carry, out = lax.scan(
        lambda carry, i: body(carry, i, *parts), carry, jnp.arange(whole)
    )
    outs = []
    if out is not None:
        outs = [jnp.moveaxis(out, 0, -2).reshape(*out.shape[1:-1], whole * chunk)]
    if rest:
        last = None if key is None else jax.random.fold_in(key, whole)
        tail = [a[:, whole * chunk :] for a in parts]
        carry, out = jax.checkpoint(absorb)(carry, last, *tail)
        outs.append(out)
    return carry, outs


def mean_and_deviation(cells: Float[Array, "b y x d"]) -> Float[Array, "b e"]:
    """Mean of each feature over a map and, behind all of these, its deviation.

    The deviation tells a mixture of two textures from either, which their mean does
    not tell from a third one.
    """
    cells = cells.astype(jnp.promote_types(cells.dtype, jnp.float32))
    mean = cells.mean((1, 2), keepdims=True)
    variance = ((cells - mean) ** 2).mean((1, 2))
    return jnp.concatenate([mean[:, 0, 0], jnp.sqrt(variance + 1e-6)], -1)
