"""What a step of an episode was worth: rewards, advantages, the surrogate of PPO.

An episode has `t` steps; those behind its mask were never taken. All of them end.
"""

import enum

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


class Reward(enum.Enum):
    """What a step earns, by the classifier's losses L before and after it.

    gain: L_t - L_t+1, of which an episode earns L_0 - L_T in all.
    loss: -L_t+1; grows with what is left of the episode (SASHA's code, as released).
    delta: as `gain`, but -L_1 at the first step (SASHA's code, an option).
    """

    gain = "gain"
    loss = "loss"
    delta = "delta"


def rewards(losses: Float[Array, "*b u"], reward: Reward) -> Float[Array, "*b t"]:
    """Of each step, given the losses of the u = t + 1 states around them."""
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

    What comes after the last step is worth nothing; behind the mask they are 0. Added
    to `values` they are the critic's targets; with `lam` = 1 and no values they are the
    rewards to go.

    Args:
        rewards: of each step.
        values: of the state before each.
        mask: True where a step was taken.
        gamma: discount.
        lam: decay of what lies ahead; 0 trusts the values, 1 the rewards.
    """
    values = jnp.where(mask, values, 0)
    after = jnp.zeros_like(values).at[..., :-1].set(values[..., 1:])
    surprise = jnp.where(mask, rewards + gamma * after - values, 0)

    def back(advantage, surprise):
        advantage = surprise + gamma * lam * advantage
        return advantage, advantage

    steps = jnp.moveaxis(surprise, -1, 0)
    _, out = lax.scan(back, jnp.zeros_like(steps[0]), steps, reverse=True)
    return jnp.moveaxis(out, 0, -1)


def normalise(x: Float[Array, "*b"], mask: Bool[Array, "*b"]) -> Float[Array, "*b"]:
    """Mean 0 and unbiased deviation 1 over the unmasked; 0 where masked."""
    count = jnp.maximum(mask.sum(), 1)
    away = jnp.where(mask, x - jnp.where(mask, x, 0).sum() / count, 0)
    return away / (jnp.sqrt((away**2).sum() / jnp.maximum(count - 1, 1)) + 1e-8)


def surrogate(
    log_ratio: Float[Array, "*b"], advantages: Float[Array, "*b"], clip: float
) -> Float[Array, "*b"]:
    """PPO's clipped objective, to be maximised (Schulman et al. 2017, eq. 7).

    Args:
        log_ratio: log-probability of the action now, less that when it was taken.
        advantages: of the actions; constants.
        clip: how far from 1 the ratio may go and still gain.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    return jnp.minimum(ratio * advantages, clipped * advantages)
