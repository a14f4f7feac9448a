"""Rewards and advantages of the steps of an episode, and PPO's surrogate objective.

An episode has `t` steps; those behind its mask were never taken. Every episode ends.
"""

import enum

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


class Reward(enum.Enum):
    """Reward of a step, by the classifier's losses L before and after it.

    gain: L_t - L_t+1; the return of an episode is L_0 - L_T.
    loss: -L_t+1; the return depends on the steps left (SASHA's code, as released).
    delta: as `gain`, but -L_1 at the first step (SASHA's code, an option).
    """

    gain = "gain"
    loss = "loss"
    delta = "delta"


def rewards(losses: Float[Array, "*b u"], reward: Reward) -> Float[Array, "*b t"]:
    """Reward of each step, from the losses of the u = t + 1 states around them."""
    before, after = losses[..., :-1], losses[..., 1:]
    match reward:
        case Reward.gain:
            return before - after
        case Reward.loss:
            return -after
        case Reward.delta:
            return (before - after).at[..., 0].set(-after[..., 0])


def advantages(
    rewards: Float[Array, "*b t"],
    values: Float[Array, "*b t"],
    mask: Bool[Array, "*b t"],
    *,
    gamma: float,
    lam: float,
) -> Float[Array, "*b t"]:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16).

    The value after the last step is 0; so are advantages behind the mask. Added to
    `values` they are the critic's targets; with `lam` = 1 and no values they are the
    rewards to go.

    Args:
        lam: lambda; at 0 one step's reward and the next value count, at 1 all rewards.
    """
    values = jnp.where(mask, values, 0)
    after = jnp.zeros_like(values).at[..., :-1].set(values[..., 1:])
    errors = jnp.where(mask, rewards + gamma * after - values, 0)

    def back(advantage, error):
        advantage = error + gamma * lam * advantage
        return advantage, advantage

    steps = jnp.moveaxis(errors, -1, 0)
    _, out = lax.scan(back, jnp.zeros_like(steps[0]), steps, reverse=True)
    return jnp.moveaxis(out, 0, -1)


def normalise(x: Float[Array, "*b"], mask: Bool[Array, "*b"]) -> Float[Array, "*b"]:
    """Shifts and scales to mean 0 and unbiased deviation 1; 0 where masked."""
    count = jnp.maximum(mask.sum(), 1)
    away = jnp.where(mask, x - jnp.where(mask, x, 0).sum() / count, 0)
    return away / (jnp.sqrt((away**2).sum() / jnp.maximum(count - 1, 1)) + 1e-8)


def surrogate(
    log_ratio: Float[Array, "*b"], advantages: Float[Array, "*b"], clip: float
) -> Float[Array, "*b"]:
    """PPO's clipped objective, to be maximised (Schulman et al. 2017, eq. 7).

    Args:
        log_ratio: log-probability of the action now, less that when it was taken.
        clip: distance of the ratio from 1 beyond which the objective is flat.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    return jnp.minimum(ratio * advantages, clipped * advantages)
