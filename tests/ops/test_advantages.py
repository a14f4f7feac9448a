"""Returns: what a step was worth, by the numbers of the released code and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sasha

from wsi_jax.ops import advantages as adv
from wsi_jax.ops.advantages import Reward

EVERY = jnp.ones((2, 13), bool)
close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["g1.0_l0.94", "g1.0_l0.95", "g0.97_l0.90"])
def test_advantages_are_the_fixture(shared, name):
    x = sasha.load(shared, "gae")
    gamma, lam = (float(part[1:]) for part in name.split("_"))
    rewards, values = x["rewards"], x["values"]
    advantages = adv.advantages(rewards, values, EVERY, gamma=gamma, lam=lam)
    close(advantages, x[f"{name}/adv"])
    close(advantages + values, x[f"{name}/returns"])
    normal = adv.normalise(advantages, EVERY)
    close(normal.ravel(), x[f"{name}/adv_normalised_flat"])
    to_go = adv.advantages(rewards, 0 * values, EVERY, gamma=gamma, lam=1.0)
    close(to_go.ravel(), x[f"{name}/reward_to_go_flat"])


def test_the_first_release_never_saw_the_last_reward(shared):
    """As if it were no surprise."""
    x = sasha.load(shared, "gae")
    expected = x["rewards"].at[:, -1].set(x["values"][:, -1])
    estimates = adv.advantages(expected, x["values"], EVERY, gamma=1.0, lam=0.95)
    close(estimates, x["v2025_g1.0_l0.95/adv"])


def test_steps_behind_the_mask_have_no_effect(key):
    keys = jax.random.split(key)
    rewards, values = (jax.random.normal(k, (2, 13)) for k in keys)
    mask = jnp.arange(13)[None] < jnp.array([[9], [0]])
    run = jax.jit(lambda r, v, m: adv.advantages(r, v, m, gamma=0.9, lam=0.8))
    junk = lambda x: jnp.where(mask, x, jnp.nan)
    estimates = run(junk(rewards), junk(values), mask)
    close(estimates[:1, :9], run(rewards[:1, :9], values[:1, :9], mask[:1, :9]))
    assert (estimates[~mask] == 0).all()
    normal = adv.normalise(estimates, mask)
    close(normal[0, :9], adv.normalise(estimates[0, :9], mask[0, :9]))
    assert (normal[~mask] == 0).all()
    assert (adv.normalise(estimates[1], mask[1]) == 0).all()


def test_an_episode_gains_what_its_loss_falls():
    losses = jnp.array([[3.0, 2.0, 2.5, 0.5]])
    close(adv.rewards(losses, Reward.gain), [[1, -0.5, 2]])
    close(adv.rewards(losses, Reward.loss), [[-2, -2.5, -0.5]])
    close(adv.rewards(losses, Reward.delta), [[-2, -0.5, 2]])


def test_a_surrogate_gains_nothing_beyond_the_clip():
    gain = jax.vmap(jax.grad(lambda log, a: adv.surrogate(log, a, 0.2)))
    log = jnp.log(jnp.array([1.0, 1.3, 1.3, 0.7, 0.7]))
    advantages = jnp.array([2.0, 2.0, -2.0, 2.0, -2.0])
    close(gain(log, advantages), [2, 0, -2.6, 1.4, 0])
