"""Attention weights from logits: what a pool adds up, and what of it sums to 1."""

import enum

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped


class Normaliser(enum.Enum):
    """How logits u become weights w that sum to 1, with s = sigmoid(u).

    softmax: exp(u_i) / sum_j exp(u_j).
    bounded_softmax: exp(s_i) / sum_j exp(s_j); no weight is more than e times another.
    squared_average: s_i^p / sum_j s_j^p, where p = 2 is the squared average of Liu, Zuo
        et al. 2024. The paper names it, and gives no formula that we could read: this
        one is ours, inferred from the name and from the size of their weights.
    sparsemax: the point of the simplex nearest to u, in which most weights are 0
        (Martins & Astudillo 2016, eq. 2).
    average: the same for every tile; logits have no say.
    """

    softmax = "softmax"
    bounded_softmax = "bounded_softmax"
    squared_average = "squared_average"
    sparsemax = "sparsemax"
    average = "average"


def log_weights(
    logits: Float[Array, "*n"], how: Normaliser, power: float = 2.0
) -> Float[Array, "*n"]:
    """Logarithms of weights up to a sum, of each tile by itself; at least float32.

    Their softmax over any tiles is what `normalise` gives for these.

    Args:
        logits: u.
        how: of them the weights are made.
        power: p of the squared average.

    Raises:
        ValueError: for sparsemax, whose weights are no quotient of such terms.
    """
    u = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if how is Normaliser.softmax:
        return u
    if how is Normaliser.bounded_softmax:
        return jax.nn.sigmoid(u)
    if how is Normaliser.squared_average:
        # Not log(sigmoid(u)), which is -inf where sigmoid(u) underflows.
        return power * jax.nn.log_sigmoid(u)
    if how is Normaliser.average:
        return jnp.zeros_like(u)
    raise ValueError(
        "sparsemax has no log weights: what a tile weighs depends on all the others, "
        "and most weigh nothing; use `normalise` on the whole bag"
    )


def normalise(
    logits: Float[Array, "*b n"],
    mask: Bool[Array, "*#b n"],
    how: Normaliser = Normaliser.softmax,
    power: float = 2.0,
) -> Float[Array, "*b n"]:
    """Weights over the unmasked, at least float32; zeros where a row has none.

    What stands behind the mask, NaN included, has no effect and no gradient.

    Args:
        logits: u.
        mask: True where there is a tile.
        how: of them the weights are made.
        power: p of the squared average.
    """
    logits = jnp.where(mask, logits, 0)
    if how is Normaliser.sparsemax:
        return _sparsemax(logits, mask)
    logits = jnp.where(mask, log_weights(logits, how, power), -jnp.inf)
    w = jnp.exp(logits - _greatest(logits))
    return _shares(w)


def squared_average(
    scores: Float[Array, "*b n"], mask: Bool[Array, "*#b n"]
) -> Float[Array, "*b n"]:
    """Weights s_i^2 / sum_j s_j^2 of scores s >= 0, where these are what one has.

    A score of 0 weighs 0 and has no gradient, and so have all of a row without another;
    from logits, `normalise` tells apart what underflows.
    """
    s = jnp.where(mask, scores, 0)
    s = s.astype(jnp.promote_types(s.dtype, jnp.float32))
    # Weights do not change with the unit of s; in this one squares do not underflow.
    unit = lax.stop_gradient(jnp.abs(s).max(-1, keepdims=True))
    return _shares((s / jnp.where(unit > 0, unit, 1)) ** 2)


def posterior(
    prior: Float[Array, "*b n"], logits: Float[Array, "*b n"]
) -> Float[Array, "*b n"]:
    """Weights p_i exp(u_i) / sum_j p_j exp(u_j); zeros where a row has none.

    With p_i = 1 they are the softmax of u. With p the weights of a sample
    (`ops.sampling.weights`) the pooled feature is an estimate of that over all tiles,
    with a bias that falls as 1 / n. What weighs nothing has no effect, whatever stands
    there, and no gradient.

    Args:
        prior: p, of 0 and more.
        logits: u.
    """
    there = prior > 0
    return normalise(logits + jnp.log(jnp.where(there, prior, 1)), there)


def _sparsemax(u, mask):
    """max(u - tau, 0), and tau such that they sum to 1, by sorting.

    Raised so that the greatest is 0, tau is -1 or more (Martins & Astudillo 2016,
    algorithm 1): what lies lower weighs nothing, however low.
    """
    u = jnp.where(mask, u.astype(jnp.promote_types(u.dtype, jnp.float32)), -jnp.inf)
    u = u - _greatest(u)
    there = mask & (u > -1)
    u = jnp.where(there, u, -2)
    z = -jnp.sort(-lax.stop_gradient(u), axis=-1)
    k = jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    k = k.reshape((1,) * (z.ndim - 1) + (-1,))
    support = (z > -2) & (1 + k * z > jnp.cumsum(z, -1))
    least = jnp.where(support, z, 0).min(-1, keepdims=True)
    chosen = there & (u >= least)
    count = jnp.maximum(chosen.sum(-1, keepdims=True), 1)
    tau = (jnp.where(chosen, u, 0).sum(-1, keepdims=True) - 1) / count
    # The sum is 1 but for rounding, which many small weights add up.
    return _shares(jnp.where(chosen, jnp.maximum(u - tau, 0), 0))


def _greatest(x: Shaped[Array, "*b n"]) -> Shaped[Array, "*b 1"]:
    """What all may be lowered by; 0 for a row without any. It has no gradient."""
    top = lax.stop_gradient(x.max(-1, keepdims=True))
    return jnp.where(jnp.isfinite(top), top, 0)


def _shares(w):
    """Of the sum, where there is one."""
    total = w.sum(-1, keepdims=True)
    return w / jnp.where(total > 0, total, 1)
