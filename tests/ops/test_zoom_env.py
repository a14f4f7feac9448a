"""The zoom environment: its episodes are those of the released code."""

import functools
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sasha

from wsi_jax.ops import zoom_env
from wsi_jax.ops.advantages import Reward, rewards
from wsi_jax.ops.zoom_env import Rules

TRAIN = {"signed": False, "freeze": True}
INFER = {"signed": False, "once": False}
EPISODES = {
    "d32_infer_masked": INFER,
    "d32_train_masked": TRAIN,
    "d32_train_masked_delta_reward": TRAIN,
    "d32_train_masked_lowtau_saturating": TRAIN | {"tau": 0.25},
    "d32_train_UNMASKED_as_step6_eval": TRAIN,
    "d384_infer_masked": INFER,
    "d384_infer_masked_lowtau": INFER | {"tau": 0.03},
    "d384_train_masked": TRAIN,
    "d384_train_masked_delta_reward": TRAIN,
    "d384_train_masked_lowtau_saturating": TRAIN | {"tau": 0.03},
    "d384_train_UNMASKED_as_step6_eval": TRAIN,
}


@functools.partial(jax.jit, static_argnames=("nets", "rules", "steps", "free"))
def greedy(nets, params, z, v, rules, steps, free):
    """Actions, states with their logits, rows that changed and that still may."""
    hafed, updater, actor = nets
    mask = jnp.ones(len(z), bool)
    update = functools.partial(updater.apply, params[1])

    def policy(step, rows, allowed):
        logits = actor.apply(params[2], rows)
        return jnp.where(allowed | free, logits, -jnp.inf).argmax()

    def observe(rows):
        return rows, hafed.apply(params[0], rows, mask, method="classify").logits

    def again(state, action):
        state, changed = zoom_env.step(state, action, v[action], update, rules)
        return state, (changed, state.eligible)

    start = zoom_env.reset(z, mask, steps)
    end, (actions, before) = zoom_env.play_steps(
        start, v, update, policy, rules, steps, observe
    )
    _, rows = jax.lax.scan(again, start, actions)
    last = observe(end.rows)
    states = jax.tree.map(lambda a, b: jnp.append(a, b[None], 0), before, last)
    return actions, *states, *rows


@pytest.mark.parametrize("name", EPISODES)
def test_episodes_are_the_fixture(shared, name):
    x = sasha.load(shared, f"episode_{name}")
    w = sasha.load(shared, f"episode_weights_{name.split('_')[0]}")
    parts = sasha.hafed(w, "hafed"), sasha.updater(w, "tsu"), sasha.actor(w, "actor")
    nets, params = zip(*parts, strict=True)
    rules, steps, free = Rules(**EPISODES[name]), len(x["actions"]), "UNMASKED" in name
    np.testing.assert_allclose(rules.tau, x["tau"])
    out = greedy(nets, params, w["Z"], w["V"], rules, steps, free)
    actions, states, logits, changed, eligible = out

    np.testing.assert_array_equal(actions, x["actions"])
    np.testing.assert_array_equal(changed, x["tsu_rows_changed"])
    # The released environment has begun anew when it tells of the last step.
    np.testing.assert_array_equal(eligible[:-1], x["env_tsu_mask_after_step"][:-1])
    np.testing.assert_array_equal(~eligible.any(-1)[:-1], x["all_marked_flag"][:-1])
    close = functools.partial(np.testing.assert_allclose, atol=1e-4)
    if "states" in x:
        close(states, x["states"])
    else:
        close(states.sum(-1), x["state_rowsum_each_step"], atol=1e-3)
    if "state_final" in x:
        close(states[1], x["state_after_step1"])
        close(states[-1], x["state_final"])
    losses = -jax.nn.log_softmax(logits)[:, w["label"]]
    close(losses[0], x["ce_initial"])
    close(losses[1:], x["ce_after_step"])
    close(logits[-1], x["final_logits"][0])
    if "train" in name:
        reward = Reward.delta if "delta" in name else Reward.loss
        close(rewards(losses, reward), x["rewards"])


def toward(v, z, rows):
    """An update that tells its arguments apart."""
    return rows + 0.5 * (v - z)[None]


def episode(rules, actions, horizon=9, mask=(True,) * 5):
    """States around the actions, on five tiles of which the first two are alike."""
    z = jnp.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    state = zoom_env.reset(z, jnp.array(mask), horizon)
    states = [state]
    for action in actions:
        v = jnp.array([5.0, float(action)])
        state, _ = zoom_env.step(state, jnp.int32(action), v, toward, rules)
        states.append(state)
    return states


def moved(states):
    """Rows that each step changed."""
    pairs = itertools.pairwise(states)
    return [np.flatnonzero((a.rows != b.rows).any(1)).tolist() for a, b in pairs]


def test_a_zoom_changes_its_tile_and_once_those_like_it():
    states = episode(Rules(), (0, 1, 2))
    assert moved(states) == [[0, 1], [1], [2]]
    np.testing.assert_allclose(states[1].rows[:2], [[5, 0], [4, 0.1]])
    assert moved(episode(Rules(signed=False), (0,))) == [[0, 1, 3]]
    just = Rules(tau=1.0, signed=False)  # the cosine of rows 0 and 3 is -1 exactly
    assert moved(episode(just, (0,))) == [[0, 3]]


def test_rows_are_updated_again_where_they_may_be():
    rules = Rules(tau=-2.0, once=False)
    assert moved(episode(rules, (0, 1, 2))) == [
        [0, 1, 2, 3, 4],
        [1, 2, 3, 4],
        [2, 3, 4],
    ]
    assert moved(episode(Rules(tau=-2.0), (0, 1))) == [[0, 1, 2, 3, 4], [1]]


def test_a_row_of_zeros_is_not_updated_after_its_zoom():
    first, *_, last = episode(Rules(), (4,))
    assert first.eligible[4]
    assert not last.eligible[4]


def test_nothing_changes_once_an_episode_is_over():
    states = episode(Rules(), (0, 2, 3), horizon=1)
    assert moved(states) == [[0, 1], [], []]
    for a, b in zip(
        jax.tree.leaves(states[1]), jax.tree.leaves(states[3]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_padding_is_like_nothing_and_freezes_nothing():
    rules = Rules(tau=-2.0, freeze=True)
    states = episode(rules, (0, 1), mask=(True, True, True, False, True))
    assert moved(states) == [[0, 1, 2, 4], []]
    assert not states[-1].rows[3].any()


def test_a_horizon_is_exact():
    """For shares of up to four decimals, and for thirds and the like."""
    largest = np.iinfo(np.int32).max
    counts = [*range(700), 81_925, *range(10**6, 10**6 + 3), 2**24 + 1, largest]
    shares = [Fraction(i, 10_000) for i in (1, 7, 999, 1250, 1500, 2000, 6000, 9999)]
    shares += [Fraction(i, k) for k in (3, 7, 11) for i in (1, k - 1)]
    for share in shares:
        steps_taken = zoom_env.horizon(float(share), jnp.array(counts))
        right = [min(max(math.ceil(share * n), 1), n) for n in counts]
        np.testing.assert_array_equal(steps_taken, right)
    assert zoom_env.horizon(0.6, 81_925) == 49_155
    np.testing.assert_array_equal(zoom_env.horizon(1.0, jnp.arange(3)), [0, 1, 2])
