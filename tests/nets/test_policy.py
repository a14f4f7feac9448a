"""The nets of a policy: as the released code computes them, row by row."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sasha

from wsi_jax.nets.policy import Critic
from wsi_jax.ops.attention_weights import masked_softmax
from wsi_jax.ops.sampling import entropy, log_attention
from wsi_jax.ops.zoom_env import unit_rows

SIZES = pytest.mark.parametrize("d", [32, 384])
close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@SIZES
def test_updater_is_the_fixture(shared, d):
    x = sasha.load(shared, f"tsu_d{d}")
    net, params = sasha.updater(x, "param")
    a, alike = x["a_t"], x["C"]
    v, z, rows, wanted = x["V"][a], x["Z"][a], x["Z"][alike], x["V"][alike]
    close(unit_rows(x["Z"]) @ unit_rows(z), x["cos"])

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params):
        out = net.apply(params, v, z, rows)
        return ((out - wanted) ** 2).mean(), out

    (loss, out), grads = run(params)
    close(out, x["pred"])
    close(loss, x["loss/mse"])
    if d == 384:
        norms = [v for k, v in x.items() if k.startswith("gradnorm/")]
        # PyTorch sums 800,000 squares one after the other, in float32.
        np.testing.assert_allclose(*map(optax.tree.norm, (grads, norms)), rtol=1e-4)
        return
    chex.assert_trees_all_close(grads, sasha.updater(x, "grad")[1], atol=1e-5)
    lr, decay = x["hp/lr"], x["hp/wd"]
    after = sasha.updater(x, "param_after_1_adamw_step")[1]
    sasha.assert_stepped(sasha.stepped(params, grads, lr, decay), after, lr)


@SIZES
def test_actor_and_critic_are_the_fixture(shared, d):
    x = sasha.load(shared, f"actor_critic_d{d}")
    (act, p), (rate, q) = sasha.actor(x, "actor"), sasha.critic(x, "critic")

    @jax.jit
    @jax.vmap
    def run(rows, allowed, action):
        every = jnp.ones_like(allowed)
        logits = act.apply(p, rows)
        scores, values = rate.apply(q, rows, method="project_rows")
        attention = masked_softmax(scores[:, 0], every)
        value = rate.apply(q, attention @ values, jnp.zeros(2), method="value")
        masked, free = (log_attention(logits, m) for m in (allowed, every))
        policies = [(one[action], entropy(one)) for one in (masked, free)]
        return logits, attention, value, masked.argmax(), policies

    logits, attention, value, greedy, policies = run(x["S"], x["allowed"], x["actions"])
    close(logits, x["out/actor_logits"])
    close(attention, x["out/critic_attention"])
    close(value, x["out/critic_value"])
    close(value, x["out/evaluate_value"])
    np.testing.assert_array_equal(greedy, x["out/greedy_action"])
    for policy, name in zip(policies, ("masked", "evaluate_unmasked"), strict=True):
        close(policy[0], x[f"out/{name}_logprob"])
        close(policy[1], x[f"out/{name}_entropy"])


def test_a_critic_with_a_clock_sees_it(key):
    net, pooled = Critic(4, channels=3), jnp.ones((3, 3))
    params = jax.jit(net.init)(key, jnp.zeros((2, 4)))
    clock = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    values = net.apply(params, pooled, clock, method="value")
    assert len(np.unique(values)) == 3
