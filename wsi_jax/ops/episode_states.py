"""Functions of the states of an episode, built from row versions, not stacked copies.

A tile has three versions of its row (`ops.episode`), of which any state takes one.
Attention pooling of a state looks up a score and a value of each.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from wsi_jax.ops.attention_weights import mean_attention
from wsi_jax.ops.episode import Episode, TwoLevelSlides

LOW, ESTIMATED, HIGH = range(3)


class RowVersions(NamedTuple):
    """A value for each row: at low resolution, as estimated, at high resolution."""

    low: PyTree
    estimated: PyTree
    high: PyTree


def map_versions(f: Callable, slides: TwoLevelSlides, episode: Episode) -> RowVersions:
    """f, rows [*m d] -> [*m ...], of all three versions of every row."""
    return RowVersions(f(slides.z), f(episode.estimated), f(slides.v))


def select_version(
    kind: Int[Array, " n"], versions: RowVersions
) -> Float[Array, "n ..."]:
    """For each tile the version that `kind` names: LOW, ESTIMATED or HIGH."""
    kind = kind.reshape(-1, *(1,) * (versions.low.ndim - 1))
    changed = jnp.where(kind == HIGH, versions.high, versions.estimated)
    return jnp.where(kind == LOW, versions.low, changed)


def pool_versions(
    weights: Float[Array, " n"], kind: Int[Array, " n"], versions: RowVersions
) -> Float[Array, " s"]:
    """Weighted sum over tiles of the versions that `kind` names, without gathering."""
    return sum(jnp.where(kind == k, weights, 0) @ x for k, x in enumerate(versions))


def map_states(
    f: Callable,
    slides: TwoLevelSlides,
    episode: Episode,
    versions: RowVersions,
    *,
    steps: int,
    chunk: int,
) -> PyTree:
    """Maps f over all states, `chunk` at a time, recomputed on the way back.

    Args:
        f: (step, kind [n], slide, episode, versions) of one slide and episode, where
            `kind` names the version that each tile has before the step.
        versions: trees of arrays, which f gets as a tree of `RowVersions`.
        steps: number of states, from that before the first step.

    Returns:
        What f returns, with [b e t] in front.
    """

    def one(step, slide, episode, versions):
        kind = jnp.where(episode.estimate_step < step, ESTIMATED, LOW)
        kind = jnp.where(episode.zoom_step < step, HIGH, kind)
        return f(step, kind, slide, episode, jax.tree.map(RowVersions, *versions))

    each = jax.vmap(one, (None, None, 0, RowVersions(None, 0, None)))
    each = jax.vmap(each, (None, 0, 0, 0))
    # The rows themselves are no longer needed.
    slides, episode = slides._replace(z=None, v=None), episode._replace(estimated=None)
    at = jax.checkpoint(lambda step: each(step, slides, episode, versions))
    out = lax.map(at, jnp.arange(steps, dtype=jnp.int32), batch_size=chunk)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 2), out)


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

    def one(step, kind, slide, episode, versions):
        scores, values = versions
        weights = mean_attention(select_version(kind, scores), slide.mask)
        return pool_versions(weights, kind, values)

    versions = map_versions(classify, slides, episode)
    return map_states(one, slides, episode, versions, steps=steps, chunk=chunk)
