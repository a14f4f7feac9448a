"""SASHA's stages: what each learns and changes, and refusals of its fields."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sasha_cases import (
    CONFIG,
    COUNTS,
    ONE,
    STEPS,
    TASK,
    apply,
    config_with,
    predictions,
    slides,
    stages,
    state,
    zoom_mask,
)
from scipy.special import rel_entr, softmax

from wsi_jax import config_fields
from wsi_jax.methods.sasha import SASHA
from wsi_jax.nets.policy import Actor, Updater
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.training.compile import split
from wsi_jax.types import Bag, TwoLevelFeatures


def test_the_rankings_loss_is_its_divergence_from_the_attention():
    """Kullback and Leibler's; and the policy begins without the ranking."""
    one, bag = stages()["ranking"], slides()
    metrics = jax.jit(one.validate)(state("ranking").params, bag, jax.random.key(0))
    params = {name: state("ranking").params[name] for name in ("hafed", "ranking")}
    results = predictions(params=state().params | params)
    expected = results["full_resolution"].attention
    ranks = apply(Actor(6), params["ranking"], bag.x.low)
    for i, n in enumerate(COUNTS[:-1]):
        divergence = rel_entr(expected[i, :n], softmax(ranks[i, :n])).sum()
        assert metrics["loss"][i] == pytest.approx(divergence, rel=1e-3)
    assert one.baseline
    assert "ranking" not in state().params


def test_a_policy_may_start_from_the_ranking():
    """The ranking then is trained as the actor, only where the config asks for it."""
    *_, ranking, policy = config_with(policy={"init_from_ranking": True}).stages(TASK)
    bag, key = slides(), jax.random.key(0)
    trained = jax.eval_shape(ranking.method.init, key, bag).params
    first = jax.eval_shape(policy.method.init, key, bag).params
    assert ranking.baseline
    assert ranking.inherited
    assert not stages()["ranking"].inherited
    chex.assert_trees_all_equal_shapes(trained["actor"], first["actor"])
    assert "ranking" not in trained.keys() | first.keys()
    before = jax.jit(ranking.method.init)(key, bag)
    after, _ = jax.jit(ranking.method.step)(before, bag)
    moved = lambda part: jax.tree.map(
        lambda a, b: np.abs(a - b).max(), before.params[part], after.params[part]
    )
    assert min(jax.tree.leaves(moved("actor"))) > 0
    assert max(jax.tree.leaves([moved(part) for part in ("hafed", "updater")])) == 0
    params = state("ranking").params
    warm = {n: p for n, p in params.items() if n != "ranking"}
    warm |= {"actor": params["ranking"]}
    order = jax.jit(ranking.method.predict)(warm, bag, key).trace["order"]
    np.testing.assert_array_equal(order, predictions()["ranking"].trace["order"])


@pytest.mark.parametrize("name", ["hafed", "updater", "ranking", "policy"])
def test_a_stage_changes_its_own_part_alone(name):
    stage, own = stages()[name], {"policy": {"actor", "critic"}}
    before = jax.device_get(state(name).params)
    after, _ = stage.method.step(
        jax.tree.map(jnp.copy, state(name)), split(slides(), ONE)
    )
    same = lambda a, b: all(map(np.array_equal, *map(jax.tree.leaves, (a, b))))
    changed = {part for part in before if not same(before[part], after.params[part])}
    assert changed == own.get(name, {name})
    config = getattr(CONFIG, {"ranking": "updater"}.get(name, name))
    assert stage.overrides["steps"] == config.steps


def few(z, v):
    """One slide; all children of a tile are alike."""
    z, v = np.float32(z)[None], np.float32(v)[None, :, None].repeat(4, 2)
    return Bag(
        TwoLevelFeatures(z, v), np.ones(z.shape[:2], bool), np.zeros(1, int), np.ones(1)
    )


def error(bag, **fields):
    """The updater's error, as validation measures it."""
    measure = jax.jit(config_with(updater=fields).stages(TASK)[1].validate)
    return float(measure(state().params, bag, jax.random.key(0))["loss"][0])


def test_the_updaters_error_is_on_tiles_alike():
    """Not on the tile zoomed into; one that is like no other is not counted."""
    z, v = np.eye(6)[[0, 0, 1]], np.linspace(-1, 1, 18).reshape(3, 6)
    v[1] = v[0]
    one = jnp.float32(v[0]), jnp.float32(z[0]), jnp.float32(z[:1])
    updated = Updater(6).apply(state().params["updater"], *one)
    expected = ((np.asarray(updated)[0] - v[0]) ** 2).mean()
    assert error(few(z, v)) == pytest.approx(expected, rel=1e-4)
    assert error(few(-z, v)) != pytest.approx(expected, rel=1e-2)
    alone = few(np.eye(6), np.ones((6, 6)))
    assert error(alone) == 0
    assert error(alone, include_self=True) > 0
    opposite = few(np.eye(6)[[0, 0]] * [[1], [-1]], v[:2])
    assert error(opposite) == 0
    assert error(opposite, signed_cosine=False) > 0


def test_features_are_standardised_as_they_come():
    """A shift and a scale of all features change nothing."""
    stage = dataclasses.replace(CONFIG, standardise=True).stages(TASK)[0]

    @jax.jit
    def logits(shift, scale):
        bag, key = jax.tree.map(jnp.asarray, slides()), jax.random.key(0)
        bag = bag._replace(x=jax.tree.map(lambda a: scale * a + shift, bag.x))
        params = stage.method.init(key, bag).params
        return stage.method.predict(params, bag, key).logits

    plain, moved = logits(0.0, 1.0), logits(50.0, 8.0)
    np.testing.assert_allclose(moved, plain, rtol=1e-3, atol=1e-4)


def test_a_policy_learns_to_zoom_where_it_pays():
    """Low resolution shows suspects, and only zooming into them shows the class.

    The updater adds nothing to a row.
    """
    batch, hafed, policy = split(slides(), ONE), stages()["hafed"], stages()["policy"]

    def train(stage, first, count):
        step = lambda state, _: stage.method.step(state, batch)[0]
        return functools.reduce(step, range(count), first).params

    first = lambda stage: stage.method.init(jax.random.key(0), batch)
    params = {"hafed": train(hafed, first(hafed), 100)["hafed"]}
    start = first(policy)
    params["updater"] = jax.tree.map(jnp.zeros_like, start.params["updater"])
    params = train(policy, start._replace(params=start.params | params), 30)
    other = slides(seed=1)  # of the same kind
    results = predictions(other, params)
    suspects = lambda one: zoom_mask(one)[:, :4].sum() / STEPS.sum()
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    loss = lambda one: cross_entropy(one.logits, other.target)[:-1].mean()
    assert suspects(results["policy"]) > 1.5 * suspects(results["random"])
    assert loss(results["policy"]) < 0.75 * loss(results["random"])
    assert (results["policy"].trace["order"][:-1, 0] < 4).mean() > 0.8


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("zoom_share", 0.0),
        ("zoom_share", 1.1),
        ("hafed.mask_rate", 1.0),
        ("hafed.branches", (0, 5)),
        ("hafed.mask_top", (10, 0)),
        ("hafed.normaliser", Normaliser.sparsemax),
        ("updater.anchors", 0),
        ("updater.rows", 0),
        ("policy.epochs", 0),
        ("policy.gae_lambda", 1.5),
        ("policy.clip", 0.0),
        ("policy.optimiser.accumulate", 2),
    ],
)
def test_a_wrong_field_is_named_with_its_flag(path, value):
    config = SASHA()
    config_fields.validate(config, "config.method")
    *parents, name = path.split(".")
    setattr(functools.reduce(getattr, parents, config), name, value)
    with pytest.raises(ValueError, match=rf"^--config\.method\.{re.escape(path)}="):
        config_fields.validate(config, "config.method")
