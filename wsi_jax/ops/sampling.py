"""Sampling of cells by their attention, and estimates of features from the sample.

Of one slide: `K` cells of all magnifications, in C order of (magnification, row,
column), of which `n` are drawn. Callers vmap over slides.
"""

import enum
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, Key

from wsi_jax.ops.attention_weights import masked_softmax


class Estimator(enum.Enum):
    """Estimator of the expected features under the attention.

    ordered: drawn without replacement; unbiased (Des Raj 1956).
    ht_norm: drawn without replacement, softmax over the drawn with their inclusion
        probabilities divided out (Kool et al. 2019); biased by O(1/n), least variance.
    with_replacement: drawn independently; unbiased (Katharopoulos & Fleuret 2019).
    full: every cell; the expectation itself.
    """

    ordered = "ordered"
    ht_norm = "ht_norm"
    with_replacement = "with_replacement"
    full = "full"


class CellSample(NamedTuple):
    """Cells drawn from an attention, and the attention at that time; constants.

    Attributes:
        index: [n], cells in the order drawn; 0 behind the mask.
        log_a: [n], their log-attention; like all that follows, 0 behind the mask.
        left: [n], the attention not yet drawn before each, without replacement.
        log_q: [n], log of the inclusion probability; 0 with replacement.
        mask: [n], False behind the last valid cell.
        exact: whether every valid cell was drawn.
    """

    index: Int32[Array, " n"]
    log_a: Float[Array, " n"]
    left: Float[Array, " n"]
    log_q: Float[Array, " n"]
    mask: Bool[Array, " n"]
    exact: Bool[Array, ""]


def log_attention(
    logits: Float[Array, " K"], mask: Bool[Array, " K"]
) -> Float[Array, " K"]:
    """Log softmax over the unmasked, at least in float32; -inf where masked.

    Masked cells have no effect and no gradient, whatever their logits.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    top = lax.stop_gradient(jnp.where(mask, logits, -jnp.inf).max())
    shifted = jnp.where(mask, logits - jnp.where(jnp.isfinite(top), top, 0), 0)
    total = jnp.where(mask, jnp.exp(shifted), 0).sum()
    return jnp.where(mask, shifted - jnp.log(jnp.where(total > 0, total, 1)), -jnp.inf)


def draw_cells(
    key: Key[Array, ""], log_a: Float[Array, " K"], n: int, estimator: Estimator
) -> CellSample:
    """Draws n cells by their attention, as `estimator` needs them; `full` takes all.

    Without replacement by Gumbel-top-k: the n greatest of log a + Gumbel noise, in
    descending order, are n draws one after the other (Kool et al. 2019). Where no more
    than n cells are valid, each of them comes once and the rest is masked.
    """
    log_a = lax.stop_gradient(log_a)
    if estimator is Estimator.full:
        cells = jnp.arange(len(log_a), dtype=jnp.int32)
        return sample_of(log_a, cells, -jnp.inf)._replace(index=cells)
    log_a = jnp.pad(log_a, (0, max(0, n + 1 - len(log_a))), constant_values=-jnp.inf)
    # The low mode's Gumbel noise has 23 bits: it ends at 16, and many cells tie.
    if estimator is Estimator.with_replacement:
        once = lax.top_k(log_a, n)[1]
        again = jax.random.categorical(key, log_a, shape=(n,), mode="high")
        few = jnp.isfinite(log_a).sum() <= n
        return sample_of(log_a, jnp.where(few, once, again), -jnp.inf)
    noise = jax.random.gumbel(key, log_a.shape, log_a.dtype, mode="high")
    perturbed, index = lax.top_k(log_a + noise, n + 1)
    return sample_of(log_a, index[:n], perturbed[n])


def sample_of(
    log_a: Float[Array, " K"],
    index: Int[Array, " n"],
    kappa: Float[Array, ""] | float,
) -> CellSample:
    """The sample that consists of the cells `index`.

    Args:
        index: cells in the order drawn, for Gumbel-top-k by descending perturbed
            log-probability; masked cells last.
        kappa: the greatest perturbed log-probability of the cells that were not drawn;
            -inf if there are none, which makes every inclusion probability 1.
    """
    log_a = lax.stop_gradient(log_a)
    here = log_a[index]
    mask = jnp.isfinite(here)
    here = jnp.where(mask, here, 0)
    a = jnp.where(mask, jnp.exp(here), 0)
    # R_m as the sum of what remains, not as 1 - what is gone: no cancellation near 0.
    never = jnp.exp(log_a).at[index].set(0).sum()
    left = jnp.where(mask, never + lax.cumsum(a, reverse=True), 0)
    # q = P(log a + Gumbel > kappa), given all other cells.
    log_q = jnp.log(-jnp.expm1(-jnp.exp(here - lax.stop_gradient(kappa))))
    return CellSample(
        index=jnp.where(mask, index, 0).astype(jnp.int32),
        log_a=here,
        left=left,
        log_q=jnp.where(mask, log_q, 0),
        mask=mask,
        exact=jnp.isfinite(log_a).sum() <= len(index),
    )


def sample_weights(
    log_a: Float[Array, " K"], drawn: CellSample, estimator: Estimator
) -> Float[Array, " n"]:
    """Weights of the drawn cells, whose weighted features estimate the expectation.

    Their derivative by log_a estimates the gradient, with the same bias or none. The
    draw is constant: log_a may come from newer parameters than `drawn`.
    With r = a / a when drawn, and R the attention left before each:

        with_replacement  r_m / n                        (Katharopoulos & Fleuret 2019)
        ordered           (R_m r_m + (n - m) a_m) / n    (Des Raj 1956)
        ht_norm           softmax_m(log a_m - log q_m)   (Kool et al. 2019)

    and a_m where every valid cell was drawn.
    """
    n, mask = len(drawn.index), drawn.mask
    here = log_a[drawn.index]
    a = jnp.where(mask, jnp.exp(here), 0)
    ratio = jnp.exp(here - drawn.log_a)
    match estimator:
        case Estimator.full:
            return a
        case Estimator.with_replacement:
            w = ratio / n
        case Estimator.ordered:
            later = jnp.arange(n - 1, -1, -1, dtype=a.dtype)
            w = (drawn.left * ratio + later * a) / n
        case Estimator.ht_norm:
            w = masked_softmax(here - drawn.log_q, mask)
    return jnp.where(drawn.exact, a, jnp.where(mask, w, 0))


def entropy(log_a: Float[Array, " K"]) -> Float[Array, ""]:
    """Entropy of the attention, in nats; masked cells add nothing."""
    there = jnp.isfinite(log_a)
    log_a = jnp.where(there, log_a, 0)
    return -jnp.where(there, jnp.exp(log_a) * log_a, 0).sum()


def attention_by_magnification(
    log_a: Float[Array, " K"], sizes: tuple[int, ...]
) -> Float[Array, " {len(sizes)}"]:
    """Total attention on each magnification, whose numbers of cells are `sizes`."""
    parts = jnp.split(jnp.exp(log_a), np.cumsum(sizes)[:-1])
    return jnp.stack([part.sum() for part in parts])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def perturbed_topk(
    scores: Float[Array, " K"],
    noise: Float[Array, "S K"],
    k: int,
    sigma: Float[Array, ""] | float,
) -> Float[Array, "{k} K"]:
    """Differentiable top-k: indicators of the k best, averaged over Gaussian noise.

    The gradient of the scores is E[<upstream, indicators> noise] / sigma (Cordonnier et
    al. 2021, after Berthet et al. 2020). Nothing else has a gradient, nor have the
    scores at sigma = 0.

    Args:
        scores: scores; -inf where masked, which is never chosen and gets no gradient.
        noise: standard normal samples.
        k: number of indicators, in the order of their cells, not of their scores.
        sigma: standard deviation of the noise.
    """
    return _perturbed_topk(scores, noise, k, sigma)[0]


def _perturbed_topk(scores, noise, k, sigma):
    best, index = lax.top_k(scores[None] + sigma * noise, k)
    # Masked cells go past the last cell, where writing is dropped and reading gives 0.
    index = jnp.sort(jnp.where(jnp.isfinite(best), index, len(scores)), axis=-1)
    sum_of = jnp.zeros((k, len(scores)), best.dtype)
    sum_of = sum_of.at[jnp.arange(k)[None], index].add(1, mode="drop")
    return sum_of / len(noise), (scores, noise, sigma, index)


def _perturbed_topk_vjp(k, saved, upstream):
    scores, noise, sigma, index = saved
    gain = upstream.at[jnp.arange(k)[None], index].get(mode="fill", fill_value=0).sum(1)
    scale = len(noise) * jnp.where(sigma > 0, sigma, jnp.inf)
    grad = jnp.where(jnp.isfinite(scores), gain @ noise / scale, 0)
    return grad.astype(scores.dtype), None, None


perturbed_topk.defvjp(_perturbed_topk, _perturbed_topk_vjp)
