"""AdamW on a warmed-up cosine: where the rate is what, and what decays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsi_jax.methods import mil
from wsi_jax.nets.norm import Norm, NormKind
from wsi_jax.training.optimiser import Optimiser, Schedule, alone, scale_updates
from wsi_jax.types import Bag, Task

PLAIN = {"weight_decay": 0.0, "clip_norm": 0.0}


def walk(tx, params, grads):
    """The updates that a list of gradients leads to."""
    step, updates = jax.jit(tx.update), []
    state = jax.jit(tx.init)(params)
    for grad in grads:
        update, state = step(grad, state, params)
        updates.append(update)
    return updates, state


def rates(config, steps, count):
    """The rate of each update: what Adam moves by under a gradient that stays."""
    params = {"kernel": jnp.zeros(())}
    one = {"kernel": jnp.ones(())}
    updates, _ = walk(config.make(steps), params, [one] * count)
    return np.array([-u["kernel"] for u in updates])


def test_the_rate_rises_from_nothing_and_falls_to_nothing():
    rate = rates(Optimiser(learning_rate=0.5, warmup=0.25, **PLAIN), 40, 41)
    np.testing.assert_allclose(rate[:11], 0.05 * np.arange(11), rtol=1e-5, atol=1e-7)
    phase = np.arange(31) / 30
    cosine = 0.25 * (1 + np.cos(np.pi * phase))
    np.testing.assert_allclose(rate[10:], cosine, rtol=1e-4, atol=1e-6)
    assert rate[40] == pytest.approx(0, abs=1e-7)
    first, second = rates(Optimiser(learning_rate=0.5, warmup=0.0, **PLAIN), 10, 2)
    assert first == pytest.approx(0.5, rel=1e-5)
    assert second < first


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_a_constant_rate_stays_at_its_peak(warmup):
    kwargs = {"warmup": warmup, "schedule": Schedule.constant}
    rate = rates(Optimiser(learning_rate=0.5, **kwargs, **PLAIN), 10, 12)
    warm = round(10 * warmup)
    np.testing.assert_allclose(rate[:warm], 0.5 * np.arange(warm) / 2, rtol=1e-4)
    np.testing.assert_allclose(rate[warm:], 0.5, rtol=1e-4)


def test_a_part_alone_is_as_if_there_were_no_other():
    """The rest stays; neither its gradient's norm nor its decay counts."""
    params = {name: {"kernel": jnp.ones(())} for name in ("one", "other")}
    grads = {"one": {"kernel": jnp.ones(())}, "other": {"kernel": jnp.float32(1e6)}}
    tx = Optimiser(learning_rate=0.5, warmup=0.0).make(10)
    whole, _ = walk(alone("one", tx), params, [grads] * 3)
    part, _ = walk(tx, {"one": params["one"]}, [{"one": grads["one"]}] * 3)
    for update, wanted in zip(whole, part, strict=True):
        assert update["other"]["kernel"] == 0
        assert update["one"]["kernel"] == wanted["one"]["kernel"] != 0


def test_a_part_at_a_pace_of_its_own_moves_by_that_share():
    one = {"trunk": {"kernel": jnp.ones(())}, "head": {"kernel": jnp.ones(())}}
    params = {"scorer": one}
    tx = Optimiser(learning_rate=0.5, warmup=0.0).make(10)
    whole, _ = walk(tx, params, [params] * 3)
    for rate in (0.0, 0.25, 1.0):
        part, _ = walk(scale_updates("trunk", rate, tx), params, [params] * 3)
        for update, wanted in zip(part, whole, strict=True):
            moved = update["scorer"]["trunk"]["kernel"]
            assert moved == rate * wanted["scorer"]["trunk"]["kernel"]
            assert update["scorer"]["head"] == wanted["scorer"]["head"]
    with pytest.raises(ValueError, match="trunk_rate=-1: 0 or more"):
        scale_updates("trunk", -1.0, tx)


def test_weight_decay_touches_kernels_alone():
    """Under no gradient, what moves is what decays."""
    bag = Bag(
        jnp.ones((2, 4, 3)), jnp.ones((2, 4), bool), jnp.zeros(2, int), jnp.ones(2)
    )
    config = mil.CLAM(width=4, attention=2, sampled=1, standardise=True)
    (stage,) = config.stages(Task(("normal", "tumor")), optax.identity())
    norm, key = Norm(NormKind.frozen), jax.random.key(0)
    params = {
        "head": jax.eval_shape(stage.method.init, key, bag).params,
        "trunk": jax.eval_shape(norm.init, key, jnp.zeros((1, 2, 2, 3))),
    }
    params = jax.tree.map(lambda p: jnp.full(p.shape, 2.0), params)
    tx = Optimiser(learning_rate=0.1, warmup=0.0, weight_decay=0.5).make(10)
    still = jax.tree.map(jnp.zeros_like, params)
    (update,), _ = walk(tx, params, [still])

    def check(path, change, param):
        name = jax.tree_util.keystr(path)
        if "kernel" in name:
            np.testing.assert_allclose(change, -0.05 * param, rtol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(change, 0, err_msg=name)
        return name

    names = jax.tree_util.tree_map_with_path(check, update, params)
    leaves = {name.split("'")[-2] for name in jax.tree.leaves(names)}
    assert {"kernel", "bias", "mean", "std", "var", "scale"} <= leaves


def test_accumulated_gradients_are_one_of_their_mean():
    """Clipping comes after the mean, and the schedule counts updates."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.ones(3), "bias": jnp.ones(2)}
    draw = lambda: jax.tree.map(
        lambda p: jnp.asarray(3 * rng.normal(size=p.shape)), params
    )
    grads = [draw() for _ in range(6)]
    means = [
        jax.tree.map(lambda a, b: (a + b) / 2, *grads[i : i + 2]) for i in (0, 2, 4)
    ]
    settings = {"learning_rate": 0.1, "warmup": 0.4, "weight_decay": 0.1}
    parts, _ = walk(Optimiser(**settings, accumulate=2).make(10), params, grads)
    wholes, _ = walk(Optimiser(**settings).make(5), params, means)
    for i, whole in enumerate(wholes):
        chex.assert_trees_all_equal(parts[2 * i], jax.tree.map(jnp.zeros_like, params))
        chex.assert_trees_all_close(parts[2 * i + 1], whole, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_clipped_by_its_norm():
    params = {"kernel": jnp.zeros(2)}
    grad = {"kernel": jnp.array([30.0, 40.0])}
    moment = lambda clip: walk(Optimiser(clip_norm=clip).make(10), params, [grad])[1]
    gradient = lambda state: optax.tree.get(state, "mu")["kernel"] * 10  # beta 0.9
    np.testing.assert_allclose(gradient(moment(5.0)), [3, 4], rtol=1e-5)
    np.testing.assert_allclose(gradient(moment(0.0)), [30, 40], rtol=1e-5)
