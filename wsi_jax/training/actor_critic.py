"""An actor and a critic, evaluated on every state of an episode."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from wsi_jax.ops.attention_weights import masked_softmax
from wsi_jax.ops.episode import Episode, TwoLevelSlides
from wsi_jax.ops.episode_states import (
    map_states,
    map_versions,
    pool_versions,
    select_version,
)
from wsi_jax.ops.sampling import entropy, log_attention


class Agent(NamedTuple):
    """Actor and critic, as functions of {"actor": ..., "critic": ...} and of rows.

    Attributes:
        act: (params, rows [*m d]) -> logits [*m].
        project_rows: (params, rows [*m d]) -> (scores [*m 1], what is pooled [*m p]).
        value: (params, pooled [*m p], clock [*m 2]) -> [*m]; the clock tells the shares
            of the steps taken and of the tiles visited.
    """

    act: Callable
    project_rows: Callable
    value: Callable

    @classmethod
    def from_modules(cls, actor, critic) -> "Agent":
        """An agent from two modules of `nets.policy`."""
        part = lambda name: (
            lambda params, *x: critic.apply(params["critic"], *x, method=name)
        )
        act = lambda params, x: actor.apply(params["actor"], x)
        return cls(act, part("project_rows"), part("value"))


class PolicyEval(NamedTuple):
    """Actor and critic on each step.

    Attributes:
        log_p: log-probability of the step that was taken.
        entropy: entropy of the steps that could have been taken.
        value: value of the state before it.
    """

    log_p: Float[Array, "b e t"]
    entropy: Float[Array, "b e t"]
    value: Float[Array, "b e t"]


def evaluate_policy(
    agent: Agent,
    params: PyTree,
    slides: TwoLevelSlides,
    episode: Episode,
    *,
    masked: bool,
    chunk: int,
) -> PolicyEval:
    """Actor and critic on every step of episodes.

    Args:
        masked: whether visited tiles could not be taken again.
    """

    def one(step, kind, slide, episode, of):
        logits, scores, pooled = of
        allowed = slide.mask
        if masked:
            allowed &= episode.zoom_step >= step
        log_p = log_attention(select_version(kind, logits), allowed)
        weights = masked_softmax(select_version(kind, scores)[:, 0], slide.mask)
        share = lambda whole: step / jnp.maximum(whole, 1).astype(weights.dtype)
        clock = jnp.stack([share(slide.horizon), share(slide.mask.sum())])
        value = agent.value(params, pool_versions(weights, kind, pooled), clock)
        # By a sum: on a TPU the gradient of an index is added one number at a time.
        taken = jnp.arange(len(log_p)) == episode.actions[step]
        return PolicyEval(jnp.where(taken, log_p, 0).sum(), entropy(log_p), value)

    of_rows = lambda rows: (agent.act(params, rows), *agent.project_rows(params, rows))
    of, steps = map_versions(of_rows, slides, episode), episode.actions.shape[-1]
    return map_states(one, slides, episode, of, steps=steps, chunk=chunk)
