"""Attention weights from logits: softmax and its alternatives, over masked tiles."""

import enum

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped


class Normaliser(enum.Enum):
    """Rule by which logits u become weights w that sum to 1, with s = sigmoid(u).

    softmax: exp(u_i) / sum_j exp(u_j).
    bounded_softmax: exp(s_i) / sum_j exp(s_j); no weight is more than e times another.
    squared_average: s_i^p / sum_j s_j^p; p = 2 is our reading of the squared average of
        Liu, Zuo et al. 2024, of which only the abstract could be had.
    sparsemax: the point of the simplex nearest to u, in which most weights are 0
        (Martins & Astudillo 2016, eq. 2).
    average: the same for every tile, whatever the logits.
    """

    softmax = "softmax"
    bounded_softmax = "bounded_softmax"
    squared_average = "squared_average"
    sparsemax = "sparsemax"
    average = "average"


def masked_softmax(
    logits: Float[Array, "*b n"], mask: Bool[Array, "*#b n"]
) -> Float[Array, "*b n"]:
    """Softmax over the unmasked, in float32; zeros where a row has none."""
    return normalise(logits, mask)


def normalise(
    logits: Float[Array, "*b n"],
    mask: Bool[Array, "*#b n"],
    normaliser: Normaliser = Normaliser.softmax,
    power: float = 2.0,
) -> Float[Array, "*b n"]:
    """Attention weights over the unmasked, at least float32; zeros where there is none.

    What stands behind the mask, NaN included, has no effect and no gradient.

    Args:
        power: p, the exponent of the squared average.
    """
    logits = jnp.where(mask, logits, 0)
    if normaliser is Normaliser.sparsemax:
        return _sparsemax(logits, mask)
    logits = jnp.where(mask, log_weights(logits, normaliser, power), -jnp.inf)
    return _divided_by_sum(jnp.exp(logits - _row_maximum(logits)))


def log_weights(
    logits: Float[Array, "*n"], normaliser: Normaliser, power: float = 2.0
) -> Float[Array, "*n"]:
    """Unnormalised log weights, computed tile by tile; at least float32.

    Their softmax over any set of tiles equals `normalise` over these.

    Raises:
        ValueError: for sparsemax, whose weights are no quotient of such terms.
    """
    u = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    match normaliser:
        case Normaliser.softmax:
            return u
        case Normaliser.bounded_softmax:
            return jax.nn.sigmoid(u)
        case Normaliser.squared_average:
            # Not log(sigmoid(u)), which is -inf where sigmoid(u) underflows.
            return power * jax.nn.log_sigmoid(u)
        case Normaliser.average:
            return jnp.zeros_like(u)
    raise ValueError(
        "sparsemax has no log weights: what a tile weighs depends on all the others, "
        "and most weigh nothing; use `normalise` on the whole bag"
    )


def squared_average(
    scores: Float[Array, "*b n"], mask: Bool[Array, "*#b n"]
) -> Float[Array, "*b n"]:
    """Weights s_i^2 / sum_j s_j^2 from scores s >= 0 rather than from logits.

    A score of 0 weighs 0 and has no gradient; a row without a score above 0 gets zeros.
    """
    s = jnp.where(mask, scores, 0)
    s = s.astype(jnp.promote_types(s.dtype, jnp.float32))
    # Weights do not change with the unit of s; in this one squares do not underflow.
    unit = lax.stop_gradient(jnp.abs(s).max(-1, keepdims=True))
    return _divided_by_sum((s / jnp.where(unit > 0, unit, 1)) ** 2)


def softmax_with_prior(
    prior: Float[Array, "*b n"], logits: Float[Array, "*b n"]
) -> Float[Array, "*b n"]:
    """Softmax of logits with prior weights: p_i exp(u_i) / sum_j p_j exp(u_j).

    With p the weights of a sample (`ops.sampling.sample_weights`) the pooled feature
    estimates that over all tiles, with a bias that falls as 1 / n. A tile of prior
    weight 0 has no effect and no gradient; a row of such tiles gets zeros.
    """
    positive = prior > 0
    return normalise(logits + jnp.log(jnp.where(positive, prior, 1)), positive)


def mean_attention(
    scores: Float[Array, "n m"], mask: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """Mean over m branches of attention, each a softmax over the unmasked of n tiles.

    Other normalisers come in as scores that are log weights (`log_weights`).
    """
    return masked_softmax(scores.T, mask[None]).mean(0)


def diversity(attention: Float[Array, "*b m n"]) -> Float[Array, "*b"]:
    """Mean pairwise cosine of m branches: 1 where they agree, 0 for a single one."""
    m = attention.shape[-2]
    if m == 1:
        return jnp.zeros(attention.shape[:-2], attention.dtype)
    square = (attention**2).sum(-1, keepdims=True)
    # Not the norm, whose gradient at 0 is none: slides without tiles have no attention.
    unit = attention / jnp.sqrt(jnp.maximum(square, 1e-16))
    i, j = np.triu_indices(m, 1)
    return (unit[..., i, :] * unit[..., j, :]).sum(-1).mean(-1)


def mask_top_k(
    scores: Float[Array, "*b n"],
    mask: Bool[Array, "*b n"],
    uniform: Float[Array, "*b top"],
    rate: float,
) -> Bool[Array, "*b n"]:
    """Masks some of the highest scores at random (ACMIL, Zhang et al. 2024).

    Of the `top` highest scores, or as many as there are, the share `rate` is masked,
    rounded down, so that attention does not rest on few tiles.

    Args:
        uniform: random numbers in [0, 1), one for each of the top, in descending order
            of scores.
    """
    top, n = uniform.shape[-1], scores.shape[-1]
    best = jnp.minimum(mask.sum(-1, keepdims=True), top)
    # Exact, as int(10 * 0.3): products in float32 may fall short of a whole number.
    drops = jnp.array([int(i * rate) for i in range(top + 1)])[best]
    exists = jnp.arange(top).reshape((1,) * (best.ndim - 1) + (-1,)) < best
    masked = _rank(jnp.where(exists, uniform, 2)) < drops
    place = _rank(jnp.where(mask, -scores, jnp.inf))
    masked = jnp.pad(masked, [(0, 0)] * (place.ndim - 1) + [(0, max(0, n - top))])
    return mask & ~jnp.take_along_axis(masked, place, -1)


def _rank(x):
    """Ascending rank of each element; of equals the first ranks lower."""
    return jnp.argsort(jnp.argsort(x, axis=-1), axis=-1)


def _sparsemax(u, mask):
    """max(u - tau, 0) with tau such that the sum is 1, by sorting.

    Shifted so that the maximum is 0, tau is -1 or more (Martins & Astudillo 2016,
    algorithm 1): lower logits weigh nothing, however low.
    """
    u = jnp.where(mask, u.astype(jnp.promote_types(u.dtype, jnp.float32)), -jnp.inf)
    u = u - _row_maximum(u)
    eligible = mask & (u > -1)
    u = jnp.where(eligible, u, -2)
    z = -jnp.sort(-lax.stop_gradient(u), axis=-1)
    k = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    k = k.reshape((1,) * (z.ndim - 1) + (-1,))
    support = (z > -2) & (1 + k * z > jnp.cumsum(z, -1))
    least = jnp.where(support, z, 0).min(-1, keepdims=True)
    chosen = eligible & (u >= least)
    count = jnp.maximum(chosen.sum(-1, keepdims=True), 1)
    tau = (jnp.where(chosen, u, 0).sum(-1, keepdims=True) - 1) / count
    # The sum is 1 but for rounding, which many small weights add up.
    return _divided_by_sum(jnp.where(chosen, jnp.maximum(u - tau, 0), 0))


def _row_maximum(x: Shaped[Array, "*b n"]) -> Shaped[Array, "*b 1"]:
    """Maximum of each row, without a gradient; 0 for a row without finite values."""
    top = lax.stop_gradient(x.max(-1, keepdims=True))
    return jnp.where(jnp.isfinite(top), top, 0)


def _divided_by_sum(w):
    """Each row over its sum; a row of zeros stays one."""
    total = w.sum(-1, keepdims=True)
    return w / jnp.where(total > 0, total, 1)
