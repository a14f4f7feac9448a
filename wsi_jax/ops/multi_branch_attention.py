"""Several attentions over the same tiles: their mean, their likeness, their best."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from wsi_jax.ops.pooling import masked_softmax


def mean_attention(
    scores: Float[Array, "n m"], mask: Bool[Array, " n"]
) -> Float[Array, " n"]:
    """Mean of m attentions, each a softmax over the unmasked of n.

    Other normalisers come in as scores that are log weights (`weights.log_weights`).
    """
    return masked_softmax(scores.T, mask[None]).mean(0)


def diversity(attention: Float[Array, "*b m n"]) -> Float[Array, "*b"]:
    """Mean cosine of every two of m attentions: 1 where they agree, 0 for one alone."""
    m = attention.shape[-2]
    if m == 1:
        return jnp.zeros(attention.shape[:-2], attention.dtype)
    square = (attention**2).sum(-1, keepdims=True)
    # Not the norm, whose gradient at 0 is none: slides without tiles have no attention.
    unit = attention / jnp.sqrt(jnp.maximum(square, 1e-16))
    i, j = np.triu_indices(m, 1)
    return (unit[..., i, :] * unit[..., j, :]).sum(-1).mean(-1)


def drop_best(
    scores: Float[Array, "*b n"],
    mask: Bool[Array, "*b n"],
    uniform: Float[Array, "*b top"],
    rate: float,
) -> Bool[Array, "*b n"]:
    """The mask without some of the best: attention must not rest on few tiles.

    Stochastic top-k instance masking (Zhang et al. 2024, ACMIL): of the `top` greatest
    scores, or as many as there are, a share is left out, rounded down.

    Args:
        scores: before they are normalised.
        mask: True where there is something.
        uniform: in [0, 1), for each of the best, in descending order of scores.
        rate: share left out.
    """
    top, n = uniform.shape[-1], scores.shape[-1]
    best = jnp.minimum(mask.sum(-1, keepdims=True), top)
    # Exact, as int(10 * 0.3): products in float32 may fall short of a whole number.
    drops = jnp.array([int(i * rate) for i in range(top + 1)])[best]
    there = jnp.arange(top).reshape((1,) * (best.ndim - 1) + (-1,)) < best
    unlucky = _rank(jnp.where(there, uniform, 2)) < drops
    place = _rank(jnp.where(mask, -scores, jnp.inf))
    unlucky = jnp.pad(unlucky, [(0, 0)] * (place.ndim - 1) + [(0, max(0, n - top))])
    return mask & ~jnp.take_along_axis(unlucky, place, -1)


def _rank(x):
    """How many are smaller, or equal and before."""
    return jnp.argsort(jnp.argsort(x, axis=-1), axis=-1)
