"""Attention pooling of every state of an episode, from row versions, not copies.

A tile has three versions of its row (`ops.episode`), each present in a span of states.
What a version weighs and adds is computed once; a state sums what is present in it, a
matmul of what is present with what is added.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from wsi_jax.ops.episode import Episode, TwoLevelSlides


class RowVersions(NamedTuple):
    """A value for each row: at low resolution, as estimated, at high resolution."""

    low: PyTree
    estimated: PyTree
    high: PyTree


def map_versions(f: Callable, slides: TwoLevelSlides, episode: Episode) -> RowVersions:
    """f, rows [*m d] -> [*m ...], of all three versions of every row."""
    return RowVersions(f(slides.z), f(episode.estimated), f(slides.v))


class VersionWeights(NamedTuple):
    """What versions weigh in a softmax over any state.

    Attributes:
        weight: exp(log_weight); 0 where a version is in no state.
        log_weight: scores less the greatest of their slide, and no less than what the
            exponential of is a normal number: -78 in float32.
    """

    weight: RowVersions
    log_weight: RowVersions


def weigh_versions(
    scores: RowVersions, slides: TwoLevelSlides, episode: Episode, *, high: bool = True
) -> VersionWeights:
    """Weights of versions by their scores, [b n m] or as estimated [b e n m].

    Args:
        high: whether rows at high resolution weigh anything.
    """
    estimated = episode.estimate_step < episode.zoom_step
    at_high = (episode.zoom_step < episode.actions.shape[-1]).any(1)
    present = RowVersions(slides.mask, estimated, at_high & high)
    present = RowVersions(*(there[..., None] for there in present))
    top = [
        jnp.where(there, score, -jnp.inf).max(range(1, score.ndim - 1))
        for there, score in zip(present, scores, strict=True)
    ]
    top = lax.stop_gradient(jnp.stack(top).max(0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    least = 0.9 * jnp.log(jnp.finfo(top.dtype).tiny)

    def shifted(there, score):
        by = top.reshape(len(top), *(1,) * (score.ndim - 2), -1)
        return jnp.where(there, jnp.maximum(score - by, least), 0)

    log_weight = RowVersions(*map(shifted, present, scores))
    weigh = lambda there, log_w: jnp.where(there, jnp.exp(log_w), 0)
    return VersionWeights(RowVersions(*map(weigh, present, log_weight)), log_weight)


def sum_states(
    values: RowVersions, episode: Episode, *, steps: int, chunk: int
) -> Float[Array, "b e {steps} k"]:
    """Sums over the rows of every state, `chunk` states at a time.

    Args:
        values: [b n k], as estimated [b e n k].
        steps: number of states, from that before the first step.
    """

    def one(step, estimate_step, zoom_step, values):
        before, estimated = step <= zoom_step, step > estimate_step
        present = before & ~estimated, before & estimated, ~before
        # At full precision: logarithms of these sums are compared between policies.
        return sum(
            jnp.matmul(there.astype(x.dtype), x, precision="highest")
            for there, x in zip(present, values, strict=True)
        )

    each = jax.vmap(one, (None, 0, 0, RowVersions(None, 0, None)))
    each = jax.vmap(each, (None, 0, 0, 0))
    given = episode.estimate_step, episode.zoom_step, values
    at = jax.checkpoint(lambda step: each(step, *given))
    out = lax.map(at, jnp.arange(steps, dtype=jnp.int32), batch_size=chunk)
    return jnp.moveaxis(out, 0, 2)


def values_at_zooms(versions: RowVersions, episode: Episode) -> Float[Array, "b e t"]:
    """Of the tile zoomed into at each step the value before; 0 where none was.

    Args:
        versions: [b n], as estimated [b e n].
    """
    estimated = episode.estimate_step < episode.zoom_step
    before = jnp.where(estimated, versions.estimated, versions.low[:, None])
    step = jnp.arange(episode.actions.shape[-1])[None, None, :, None]

    # By a sum: on a TPU the gradient of an index is added one number at a time.
    @jax.checkpoint
    def summed(before):
        here = episode.zoom_step[:, :, None] == step
        return jnp.where(here, before[:, :, None], 0).sum(-1)

    return summed(before)


def quotient(
    total: Float[Array, "*b k"], weight: Float[Array, "*b #k"]
) -> Float[Array, "*b k"]:
    """Sums over the sums of their weights; 0 where nothing weighs."""
    weight = jnp.where(weight > 0, weight, 1)
    # In units in which the square of the weight, in the gradient, does not underflow.
    unit = lax.stop_gradient(1 / weight)
    return total * unit / (weight * unit)


def state_logits(
    classify: Callable,
    slides: TwoLevelSlides,
    episode: Episode,
    *,
    steps: int,
    chunk: int,
) -> Float[Array, "b e {steps} c"]:
    """Class logits of every state, by attention pooling.

    Args:
        classify: rows [*m d] -> (scores [*m k] of k attentions, which are averaged,
            class logits [*m c]).
    """
    of = map_versions(classify, slides, episode)
    scores, logits = (RowVersions(*part) for part in zip(*of, strict=True))
    weights = weigh_versions(scores, slides, episode).weight
    k = weights.low.shape[-1]

    def values(weight, x):
        weighted = weight[..., None] * x[..., None, :]
        return jnp.concatenate([weight, weighted.reshape(*x.shape[:-1], -1)], -1)

    values = RowVersions(*map(values, weights, logits))
    sums = sum_states(values, episode, steps=steps, chunk=chunk)
    weight, total = sums[..., :k], sums[..., k:]
    total = total.reshape(*total.shape[:-1], k, -1)
    return quotient(total, weight[..., None]).mean(-2)
