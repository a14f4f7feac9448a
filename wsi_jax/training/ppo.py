"""Proximal policy optimisation of a policy that zooms (Schulman et al. 2017).

A batch is `b` slides with `e` episodes of `t` steps on each. All of it is one program:
episodes are played, weighed and learnt from without leaving the device.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from wsi_jax.ops.advantages import Reward, advantages, normalise, rewards, surrogate
from wsi_jax.ops.episode import Episode, Slides
from wsi_jax.ops.episode_states import state_logits
from wsi_jax.training.actor_critic import Agent, evaluate_policy
from wsi_jax.training.supervised import weighted_mean


@dataclasses.dataclass(kw_only=True)
class PPO:
    """How a policy learns from episodes.

    Attributes:
        episodes: played on each slide before each update.
        epochs: gradient steps of an update, each on all steps of all its episodes.
        clip: how far the ratio of probabilities may go from 1 and still gain.
        gamma: discount.
        lam: of the advantages; what lies ahead decays by it.
        entropy: reward for that of the policy.
        reward: of a step.
        masked: whether the new policy, like the old, never goes to a tile again. The
            released code compares an unmasked policy with a masked one.
        chunk: states weighed at a time.
    """

    episodes: int = 2
    epochs: int = 4
    clip: float = 0.2
    gamma: float = 1.0
    lam: float = 0.94
    entropy: float = 0.001
    reward: Reward = Reward.gain
    masked: bool = True
    chunk: int = 25

    def validate(self) -> None:
        """Raises ValueError naming the flag that is wrong."""
        for name in ("episodes", "epochs", "chunk"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"--config.method.ppo.{name}={value}: 1 or more")
        for name in ("gamma", "lam"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"--config.method.ppo.{name}={value}: from 0 to 1")
        if self.clip <= 0:
            raise ValueError(f"--config.method.ppo.clip={self.clip}: above 0")


class Experience(NamedTuple):
    """Episodes and what is to be learnt from them; constants.

    Attributes:
        slides: on which they were played.
        episode: as played.
        live: [b e t], the steps that were taken.
        log_p: [b e t], of the actions, when they were taken.
        advantage: [b e t], normalised over a slide's episodes.
        target: [b e t], of the critic.
        gain: [b e], what the classifier's loss fell by in an episode.
        weight: [b], of the slides.
    """

    slides: Slides
    episode: Episode
    live: Bool[Array, "b e t"]
    log_p: Float[Array, "b e t"]
    advantage: Float[Array, "b e t"]
    target: Float[Array, "b e t"]
    gain: Float[Array, "b e"]
    weight: Float[Array, " b"]


def optimiser(
    actor: optax.GradientTransformation, critic: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One of both, each with its own moments and its own gradient's norm."""
    labels = {"actor": "actor", "critic": "critic"}
    return optax.partition({"actor": actor, "critic": critic}, labels)


def experience(
    agent: Agent,
    params: PyTree,
    classify: Callable,
    slides: Slides,
    label: Int[Array, " b"],
    weight: Float[Array, " b"],
    episode: Episode,
    config: PPO,
) -> Experience:
    """What the agent that played episodes is to learn from them.

    Args:
        agent: actor and critic.
        params: of both, with which the episodes were played.
        classify: whose loss is to fall: rows [*m d] -> (scores [*m k], values [*m c]).
        slides: on which the episodes are.
        label: of the slides.
        weight: of the slides.
        episode: as played.
        config: of the learning.
    """
    steps = episode.actions.shape[-1]
    live = jnp.arange(steps)[None] < slides.horizon[:, None]
    live = jnp.broadcast_to(live[:, None], episode.actions.shape)
    logits = state_logits(
        classify, slides, episode, steps=steps + 1, chunk=config.chunk
    )
    surprise = optax.softmax_cross_entropy_with_integer_labels
    losses = surprise(logits, jnp.broadcast_to(label[:, None, None], logits.shape[:-1]))
    then = evaluate_policy(
        agent, params, slides, episode, masked=True, chunk=config.chunk
    )
    advantage = advantages(
        rewards(losses, config.reward),
        then.value,
        live,
        gamma=config.gamma,
        lam=config.lam,
    )
    return Experience(
        slides=slides,
        episode=episode,
        live=live,
        log_p=then.log_p,
        advantage=jax.vmap(normalise)(advantage, live),
        target=advantage + then.value,
        gain=losses[..., 0] - losses[..., -1],
        weight=weight,
    )


def loss(
    agent: Agent, params: PyTree, gained: Experience, config: PPO
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Of actor and critic together, which share no parameter; and each by itself."""
    slides, episode, live = gained.slides, gained.episode, gained.live
    how = {"masked": config.masked, "chunk": config.chunk}
    now = evaluate_policy(agent, params, slides, episode, **how)

    def mean(x):
        """Over a slide's steps, then over slides."""
        each = jnp.where(live, x, 0).sum((1, 2)) / jnp.maximum(live.sum((1, 2)), 1)
        return weighted_mean(each, gained.weight)

    log_ratio = jnp.where(live, now.log_p - gained.log_p, 0)
    gain = mean(surrogate(log_ratio, gained.advantage, config.clip))
    spread = mean(now.entropy)
    actor = -gain - config.entropy * spread
    critic = mean((now.value - gained.target) ** 2)
    metrics = {"actor_loss": actor, "critic_loss": critic, "entropy": spread}
    return actor + critic, metrics


def improve(
    agent: Agent,
    tx: optax.GradientTransformation,
    params: PyTree,
    opt: PyTree,
    gained: Experience,
    config: PPO,
) -> tuple[PyTree, PyTree, dict[str, Float[Array, " epochs"]]]:
    """Learns from episodes; returns parameters, optimiser's state and metrics by epoch.

    Args:
        agent: actor and critic.
        tx: of both; see `optimiser`.
        params: of both.
        opt: state of `tx`.
        gained: what there is to learn from.
        config: of the learning.
    """

    def epoch(carry, _):
        params, opt = carry
        of = lambda params: loss(agent, params, gained, config)
        grads, metrics = jax.grad(of, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        for name in ("actor", "critic"):
            metrics[f"{name}_grad_norm"] = optax.tree.norm(grads[name])
        return (optax.apply_updates(params, updates), opt), metrics

    (params, opt), metrics = lax.scan(epoch, (params, opt), length=config.epochs)
    return params, opt, metrics
