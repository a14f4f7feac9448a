"""An actor and a critic, evaluated on every state of an episode."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from wsi_jax.ops.episode import Episode, TwoLevelSlides
from wsi_jax.ops.episode_states import (
    RowVersions,
    map_versions,
    quotient,
    sum_states,
    values_at_zooms,
    weigh_versions,
)


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
    of_rows = lambda rows: (agent.act(params, rows), *agent.project_rows(params, rows))
    of = map_versions(of_rows, slides, episode)
    logits, scores, pooled = (RowVersions(*part) for part in zip(*of, strict=True))
    logits = RowVersions(*(x[..., None] for x in logits))
    policy = weigh_versions(logits, slides, episode, high=not masked)
    attention = weigh_versions(scores, slides, episode).weight

    def values(weight, log_weight, attention, pooled):
        return jnp.concatenate(
            [weight, weight * log_weight, attention, attention * pooled], -1
        )

    steps = episode.actions.shape[-1]
    each = map(values, policy.weight, policy.log_weight, attention, pooled)
    sums = sum_states(RowVersions(*each), episode, steps=steps, chunk=chunk)
    total, log_weight, weight, pooled = jnp.split(sums, (1, 2, 3), -1)
    # A state of which nothing is left has no action, and no entropy.
    log_total = jnp.log(jnp.where(total > 0, total, 1))[..., 0]
    log_weights = RowVersions(*(x[..., 0] for x in policy.log_weight))
    taken = values_at_zooms(log_weights, episode)
    entropy = log_total - quotient(log_weight, total)[..., 0]
    share = lambda whole: jnp.arange(steps)[None] / jnp.maximum(whole, 1)[:, None]
    clock = jnp.stack([share(slides.horizon), share(slides.mask.sum(-1))], -1)
    clock = jnp.broadcast_to(clock[:, None], (*total.shape[:-1], 2))
    value = agent.value(params, quotient(pooled, weight), clock.astype(sums.dtype))
    return PolicyEval(taken - log_total, entropy, value)
