"""Functions of a state, computed from functions of its rows.

Of a tile three rows are known in an episode (`ops.episode`), and any state is made of
one of them for each tile. Attention pooling of it needs a score and a value of each
row, and both are looked up.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from wsi_jax.ops.episode import Episode, Slides
from wsi_jax.ops.multi_branch_attention import mean_attention

SEEN, ESTIMATED, ZOOMED = range(3)


class Versions(NamedTuple):
    """Something of every row: as seen, as estimated, as zoomed into."""

    seen: PyTree
    estimated: PyTree
    zoomed: PyTree


def versions(f: Callable, slides: Slides, episode: Episode) -> Versions:
    """f, rows [*m d] -> [*m ...], of every row that a tile has in the episodes."""
    return Versions(f(slides.z), f(episode.estimated), f(slides.v))


def select(kind: Int[Array, " n"], of: Versions) -> Float[Array, "n ..."]:
    """Of each tile the version that it has."""
    kind = kind.reshape(-1, *(1,) * (of.seen.ndim - 1))
    changed = jnp.where(kind == ZOOMED, of.zoomed, of.estimated)
    return jnp.where(kind == SEEN, of.seen, changed)


def pool(
    weights: Float[Array, " n"], kind: Int[Array, " n"], of: Versions
) -> Float[Array, " s"]:
    """Weighted sum of the versions that the tiles have, none of which is gathered."""
    return sum(jnp.where(kind == k, weights, 0) @ x for k, x in enumerate(of))


def along(
    f: Callable,
    slides: Slides,
    episode: Episode,
    of: Versions,
    *,
    steps: int,
    chunk: int,
) -> PyTree:
    """f of every state, `chunk` states at a time, computed again on the way back.

    Args:
        f: (step, kind [n], slide, episode, of) of one slide and episode, where `kind`
            tells which version each tile has before the step.
        slides: on which the episodes are.
        episode: as played.
        of: trees of arrays, which f has as a tree of `Versions`.
        steps: states, from that before the first step.
        chunk: states at a time.

    Returns:
        What f returns, with [b e t] in front.
    """

    def one(step, slide, episode, of):
        kind = jnp.where(episode.estimated_at < step, ESTIMATED, SEEN)
        kind = jnp.where(episode.zoomed_at < step, ZOOMED, kind)
        return f(step, kind, slide, episode, jax.tree.map(Versions, *of))

    each = jax.vmap(one, (None, None, 0, Versions(None, 0, None)))
    each = jax.vmap(each, (None, 0, 0, 0))
    # The rows themselves are behind us.
    slides, episode = slides._replace(z=None, v=None), episode._replace(estimated=None)
    at = jax.checkpoint(lambda step: each(step, slides, episode, of))
    out = lax.map(at, jnp.arange(steps, dtype=jnp.int32), batch_size=chunk)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 2), out)


def verdicts(
    classify: Callable, slides: Slides, episode: Episode, *, steps: int, chunk: int
) -> Float[Array, "b e {steps} c"]:
    """Logits of every state by attention pooling.

    Args:
        classify: rows [*m d] -> (scores [*m k] of k attentions, whose mean counts,
            values [*m c]).
        slides: on which the episodes are.
        episode: as played.
        steps: states, from that before the first step.
        chunk: states at a time.
    """

    def one(step, kind, slide, episode, of):
        scores, values = of
        weights = mean_attention(select(kind, scores), slide.mask)
        return pool(weights, kind, values)

    of = versions(classify, slides, episode)
    return along(one, slides, episode, of, steps=steps, chunk=chunk)
