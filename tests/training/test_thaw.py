"""A trunk thawed late: still at first, then slow, then as fast as the head."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wsi_jax.training.optimiser import Thaw


def moved(thaw, tx, steps=6):
    """How far trunk and head have moved at each step, under a gradient of ones."""
    params = {"trunk": jnp.zeros(2), "head": jnp.zeros(3)}
    over = thaw.over(tx)
    state, moves = over.init(params), []
    for _ in range(steps):
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = over.update(grads, state, params)
        moves.append((-float(updates["trunk"][0]), -float(updates["head"][0])))
    return np.array(moves)


def test_rates_follow_the_schedule():
    thaw = Thaw(frozen=2, warmup=2, start=0.01, slower=0.5)
    trunk, head = moved(thaw, optax.sgd(1.0)).T
    np.testing.assert_allclose(head, [1, 1, 0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(trunk, [0, 0, 0.005, 0.05, 0.5, 0.5], rtol=1e-5)
    np.testing.assert_allclose(moved(Thaw(), optax.sgd(1.0)), 1)


def test_a_frozen_trunk_has_no_part_in_the_gradients_norm():
    clip = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    trunk, head = moved(Thaw(frozen=3), clip).T
    np.testing.assert_allclose(head[:3], 3**-0.5, rtol=1e-6)
    np.testing.assert_allclose(head[3:], 5**-0.5, rtol=1e-6)
    np.testing.assert_allclose(trunk[3:], 5**-0.5, rtol=1e-6)


def test_it_thaws_by_batches_where_gradients_are_accumulated():
    tx = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    trunk, head = moved(Thaw(frozen=4), tx).T
    np.testing.assert_allclose(head, [0, 1, 0, 1, 0, 1])
    np.testing.assert_allclose(trunk, [0, 0, 0, 0, 0, 1])


def test_adam_begins_for_the_trunk_when_it_thaws():
    """Under a steady gradient every update of Adam is the rate itself."""
    for tx in (
        optax.adam(1e-3),
        optax.MultiSteps(optax.adam(1e-3), 1).gradient_transformation(),
    ):
        trunk, head = moved(Thaw(frozen=50), tx, steps=80).T
        np.testing.assert_allclose(head, 1e-3, rtol=1e-3)
        np.testing.assert_allclose(trunk[:50], 0)
        np.testing.assert_allclose(trunk[50:], 1e-3, rtol=1e-3)
