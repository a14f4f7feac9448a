"""Zooming where a policy chooses: what a prediction rests on, and what stages learn."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import rel_entr, softmax

from wsi_jax import config_io
from wsi_jax.methods.sasha import SASHA, HAFEDStage, PolicyStage, UpdaterStage
from wsi_jax.nets.hafed import HAFED
from wsi_jax.nets.policy import Actor, Updater
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.ops.zoom_strategies import STRATEGIES
from wsi_jax.training.compile import compile_each, compile_method, make_mesh, split
from wsi_jax.training.optimiser import Optimiser
from wsi_jax.types import Bag, Task, TwoLevelFeatures

TASK = Task(("normal", "tumor", "other"))
ONE = make_mesh(jax.devices()[:1])
COUNTS = np.array([16, 16, 15, 12, 16, 9, 16, 0])
MASK = np.arange(16) < COUNTS[:, None]
NAMES = ("policy", "ranking", *STRATEGIES)
ZOOMING = tuple(name for name in NAMES if "resolution" not in name)
ADAM = Optimiser(learning_rate=1e-2, warmup=0.0)
CONFIG = SASHA(
    children=2,
    zoom_share=0.25,
    hafed=HAFEDStage(branches=(1, 2), mask_top=(2, 4), optimiser=ADAM),
    updater=UpdaterStage(min_cosine=0.8, optimiser=ADAM),
    policy=PolicyStage(episodes=4, epochs=2, chunk=5, optimiser=ADAM),
)
STEPS = np.ceil(0.25 * COUNTS).astype(int)


def replaced(**stages):
    """The config with other fields of its stages."""
    made = {n: dataclasses.replace(getattr(CONFIG, n), **f) for n, f in stages.items()}
    return dataclasses.replace(CONFIG, **made)


def slides(seed=0) -> Bag:
    """Of each the first four are suspects at low resolution.

    Their children tell the class; those of others, and of normal ones, tell nothing.
    The last slide only fills the batch.
    """
    rng = np.random.default_rng(seed)
    label = np.arange(8) % 3
    low, high = (0.3 * rng.normal(size=(8, 16, *more, 6)) for more in ((), (4,)))
    low[:, :4, 0] += 0.9
    for i, c in enumerate(label):
        high[i, :4, :, c] += 3 * (c > 0)
    x = TwoLevelFeatures(np.float32(low), np.float32(high))
    return Bag(x, MASK, label.astype(np.int32), np.float32(COUNTS > 0))


@functools.cache
def stages(config=None):
    made = (config or CONFIG).stages(TASK)
    return {
        one.name: one._replace(method=compile_method(one.method, ONE)) for one in made
    }


@functools.cache
def fresh(stage="policy"):
    """Larger than it begins, so that a policy is not uniform."""
    state = stages()[stage].method.init(jax.random.key(0), split(slides(), ONE))
    grown = jax.tree.map(lambda a: 3 * a, state.params)
    known = {"standardise": state.params["standardise"]}
    return state._replace(params=grown | known)


@functools.cache
def everything():
    """All ways in one program: (params, bag, key) -> a prediction of each."""
    *_, ranking, policy = CONFIG.stages(TASK)
    methods = {one.name: one.method for one in (ranking, policy)} | policy.alternatives
    return jax.jit(
        lambda *x: {name: method.predict(*x) for name, method in methods.items()}
    )


def said(bag=None, params=None, key=0):
    """By every way."""
    params = fresh().params if params is None else params
    params = {"ranking": fresh("ranking").params["ranking"]} | params
    found = everything()(params, bag or slides(), jax.random.key(key))
    return jax.device_get(found)


def zoomed(prediction):
    """Which tiles were zoomed into [b n], by the order told."""
    found = np.zeros(MASK.shape, bool)
    for i, (order, steps) in enumerate(
        zip(prediction.trace["order"], prediction.trace["steps"], strict=True)
    ):
        found[i, order[:steps]] = True
    return found


def apply(net, params, *x, method=None):
    """A net on arrays of NumPy."""
    return jax.device_get(net.apply(params, *map(jnp.asarray, x), method=method))


def edited(bag, low=None, high=None, junk=1e3):
    """With junk at these tiles."""
    put = lambda a, at: (
        a
        if at is None
        else np.where(at.reshape(at.shape + (1,) * (a.ndim - 2)), junk, a)
    )
    x = TwoLevelFeatures(
        np.float32(put(bag.x.low, low)), np.float32(put(bag.x.high, high))
    )
    return bag._replace(x=x)


def test_every_way_gives_a_verdict():
    """Attention sums to 1 over tiles, and what was read is counted."""
    found = said()
    assert set(found) == set(NAMES)
    for name, one in found.items():
        assert one.logits.shape == (8, 3)
        assert np.isfinite(one.logits).all()
        np.testing.assert_allclose(one.attention[:-1].sum(-1), 1, rtol=1e-5)
        assert not one.attention[~MASK].any()
        zooms = {"low_resolution": 0, "full_resolution": COUNTS}.get(name, STEPS)
        np.testing.assert_array_equal(one.counts["tiles"], COUNTS + 4 * zooms)
        assert (one.counts["flops"][:-1] > 0).all()
    for name in ZOOMING:
        told, at_last = found[name].logits[:-1], found[name].trace["logits"][:-1, -1]
        same = name != "zoomed_only"  # what is told along the way is of all tiles
        assert np.allclose(told, at_last, atol=1e-4) == same


def test_no_tile_is_zoomed_into_twice():
    for name in ZOOMING:
        chosen = zoomed(said()[name])
        np.testing.assert_array_equal(chosen.sum(-1), STEPS)
        assert not chosen[~MASK].any()


def test_one_resolution_rests_on_itself_alone():
    before = said()
    for name, other in (("full_resolution", "low"), ("low_resolution", "high")):
        after = said(edited(slides(), **{other: MASK}, junk=np.nan))[name]
        np.testing.assert_array_equal(after.logits, before[name].logits)
        np.testing.assert_array_equal(after.attention, before[name].attention)


@pytest.mark.parametrize("name", [name for name in ZOOMING if name != "oracle"])
def test_what_is_not_zoomed_into_never_changes_a_verdict(name):
    """Bit by bit; what is zoomed into does."""
    before = said()[name]
    unread = said(edited(slides(), high=~zoomed(before)))[name]
    chex.assert_trees_all_equal(unread, before)
    read = said(edited(slides(), high=zoomed(before), junk=9))[name]
    assert (read.logits != before.logits)[:-1].any(-1).all()


def test_ways_choose_what_they_say():
    found = said()
    for name, seen in (("low_attention", "low"), ("oracle", "full")):
        attention = np.where(MASK, found[f"{seen}_resolution"].attention, -1)
        best = np.argsort(-attention, 1, kind="stable")
        for i, steps in enumerate(STEPS):
            order = found[name].trace["order"][i, :steps]
            np.testing.assert_array_equal(order, best[i, :steps])
    ranks = apply(Actor(6), fresh("ranking").params["ranking"], slides().x.low)
    best = np.argsort(-np.where(MASK, ranks, -np.inf), 1, kind="stable")
    for i, steps in enumerate(STEPS):
        order = found["ranking"].trace["order"][i, :steps]
        np.testing.assert_array_equal(order, best[i, :steps])
    for i, steps in enumerate(STEPS[:-1]):
        (places,) = np.nonzero(zoomed(found["grid"])[i])
        gaps = np.diff([*places, places[0] + COUNTS[i]])
        assert set(gaps) <= {COUNTS[i] // steps, -(-COUNTS[i] // steps)}
    again = said(key=1)
    for name in ZOOMING:
        same = (zoomed(again[name]) == zoomed(found[name])).all()
        assert same == (name != "random"), name


def test_rows_are_updated_as_the_way_has_it():
    """With none, with those alike and with all, the verdicts differ in pairs."""
    logits = [said()[name].logits for name in ("policy", "no_update", "all_updated")]
    for one, other in zip(logits, logits[1:] + logits[:1], strict=True):
        assert (one != other)[:-1].any()


def test_a_global_update_is_of_every_row_at_every_step():
    """Again and again, until a tile is zoomed into itself."""
    params, told = fresh().params, said()["all_updated"]
    hafed = functools.partial(
        apply, HAFED(3, 6, CONFIG.hafed.branches), params["hafed"]
    )
    z, children = (x[2, : COUNTS[2]] for x in slides().x)
    v, _ = hafed(children, method="aggregate")
    left, order = np.ones(len(z), bool), []
    for _ in range(STEPS[2]):
        at = np.where(left, apply(Actor(6), params["actor"], z), -np.inf).argmax()
        order.append(at)
        left[at] = False
        new = apply(Updater(6), params["updater"], v[at], z[at], z)
        z = np.where(left[:, None], new, z)
        z[at] = v[at]
    np.testing.assert_array_equal(told.trace["order"][2, : STEPS[2]], order)
    wanted = hafed(z, np.ones(len(z), bool), method="classify").logits
    np.testing.assert_allclose(told.logits[2], wanted, rtol=1e-3, atol=1e-4)


def test_the_ranking_is_as_wrong_as_it_is_far_from_the_attention():
    """By the Kullback-Leibler divergence; and the policy begins without it."""
    one, bag = stages()["ranking"], slides()
    told = jax.jit(one.validate)(fresh("ranking").params, bag, jax.random.key(0))
    params = {name: fresh("ranking").params[name] for name in ("hafed", "ranking")}
    known = {**fresh().params, **params}
    wanted = said(params=known)["full_resolution"].attention
    ranks = apply(Actor(6), params["ranking"], bag.x.low)
    for i, n in enumerate(COUNTS[:-1]):
        far = rel_entr(wanted[i, :n], softmax(ranks[i, :n])).sum()
        assert told["loss"][i] == pytest.approx(far, rel=1e-3)
    assert one.baseline
    assert "ranking" not in fresh().params


def test_a_policy_may_start_from_the_ranking():
    """Which then is trained as the actor, and only where that is asked for."""
    *_, ranking, policy = replaced(policy={"init_from_ranking": True}).stages(TASK)
    bag, key = slides(), jax.random.key(0)
    learnt = jax.eval_shape(ranking.method.init, key, bag).params
    begun = jax.eval_shape(policy.method.init, key, bag).params
    assert ranking.baseline
    assert ranking.inherited
    assert not stages()["ranking"].inherited
    chex.assert_trees_all_equal_shapes(learnt["actor"], begun["actor"])
    assert "ranking" not in learnt.keys() | begun.keys()
    state = jax.jit(ranking.method.init)(key, bag)
    step, _ = jax.jit(ranking.method.step)(state, bag)
    moved = lambda part: jax.tree.map(
        lambda a, b: np.abs(a - b).max(), state.params[part], step.params[part]
    )
    assert min(jax.tree.leaves(moved("actor"))) > 0
    assert max(jax.tree.leaves([moved(part) for part in ("hafed", "updater")])) == 0
    params = fresh("ranking").params
    warm = {n: p for n, p in params.items() if n != "ranking"}
    warm |= {"actor": params["ranking"]}
    told = jax.jit(ranking.method.predict)(warm, bag, key)
    np.testing.assert_array_equal(told.trace["order"], said()["ranking"].trace["order"])


def test_distilled_slides_are_judged_as_they_were():
    bag, stage = slides(), stages()["policy"]
    made = jax.jit(stages()["hafed"].distil)(fresh().params, bag.x)
    bag = split(bag._replace(x=made), ONE)
    found = stage.method.predict(fresh().params, bag, jax.random.key(0))
    close = {"rtol": 1e-4, "atol": 1e-5}
    chex.assert_trees_all_close(jax.device_get(found), said()["policy"], **close)


@pytest.mark.parametrize("share", [0.99, 1.0])
def test_a_share_of_one_is_full_resolution(share):
    """Also where every tile is zoomed into, one after another."""
    *_, stage = dataclasses.replace(CONFIG, zoom_share=share).stages(TASK)
    predict = compile_each(stage.method.predict, ONE)
    found = predict(fresh().params, split(slides(), ONE), jax.random.key(0))
    wanted = said()["full_resolution"]
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.counts["tiles"], 5 * COUNTS)
    assert (stage.rounds is None) == (share == 1)


@pytest.mark.parametrize("name", ["hafed", "updater", "ranking", "policy"])
def test_a_stage_changes_its_own_part_alone(name):
    stage, own = stages()[name], {"policy": {"actor", "critic"}}
    before = jax.device_get(fresh(name).params)
    state = jax.tree.map(jnp.copy, fresh(name))
    state, _ = stage.method.step(state, split(slides(), ONE))
    same = lambda a, b: all(map(np.array_equal, *map(jax.tree.leaves, (a, b))))
    changed = {part for part in before if not same(before[part], state.params[part])}
    assert changed == own.get(name, {name})
    config = getattr(CONFIG, {"ranking": "updater"}.get(name, name))
    assert stage.overrides["steps"] == config.steps


def few(z, v):
    """One slide; of each tile all children say the same."""
    z, v = np.float32(z)[None], np.float32(v)[None, :, None].repeat(4, 2)
    return Bag(
        TwoLevelFeatures(z, v), np.ones(z.shape[:2], bool), np.zeros(1, int), np.ones(1)
    )


def error(bag, **fields):
    """Of the updater, as validation has it."""
    measure = jax.jit(replaced(updater=fields).stages(TASK)[1].validate)
    return float(measure(fresh().params, bag, jax.random.key(0))["loss"][0])


def test_the_updater_is_wrong_by_what_it_makes_of_tiles_alike():
    """Not of the tile zoomed into; one that is like no other is not counted."""
    z, v = np.eye(6)[[0, 0, 1]], np.linspace(-1, 1, 18).reshape(3, 6)
    v[1] = v[0]
    one = jnp.float32(v[0]), jnp.float32(z[0]), jnp.float32(z[:1])
    told = Updater(6).apply(fresh().params["updater"], *one)
    wanted = ((np.asarray(told)[0] - v[0]) ** 2).mean()
    assert error(few(z, v)) == pytest.approx(wanted, rel=1e-4)
    assert error(few(-z, v)) != pytest.approx(wanted, rel=1e-2)
    alone = few(np.eye(6), np.ones((6, 6)))
    assert error(alone) == 0
    assert error(alone, include_self=True) > 0
    opposite = few(np.eye(6)[[0, 0]] * [[1], [-1]], v[:2])
    assert error(opposite) == 0
    assert error(opposite, signed_cosine=False) > 0


def test_features_are_standardised_as_they_come():
    """So that a shift and a scale of all change nothing."""
    stage = dataclasses.replace(CONFIG, standardise=True).stages(TASK)[0]

    @jax.jit
    def judge(shift, scale):
        bag, key = jax.tree.map(jnp.asarray, slides()), jax.random.key(0)
        bag = bag._replace(x=jax.tree.map(lambda a: scale * a + shift, bag.x))
        params = stage.method.init(key, bag).params
        return stage.method.predict(params, bag, key).logits

    plain, moved = judge(0.0, 1.0), judge(50.0, 8.0)
    np.testing.assert_allclose(moved, plain, rtol=1e-3, atol=1e-4)


def test_an_episode_is_judged_by_the_normaliser_of_its_config():
    """The fast path's last verdict is that on the rows as they are in the end."""
    told = []
    for how in (Normaliser.softmax, Normaliser.squared_average):
        config = replaced(hafed={"normaliser": how})
        predict = jax.jit(config.stages(TASK)[-1].method.predict)
        found = predict(fresh().params, split(slides(), ONE), jax.random.key(0))
        # A slide of fewer steps than the fullest ends earlier.
        last = np.take_along_axis(found.trace["logits"], STEPS[:, None, None], 1)[:, 0]
        some = slice(-1)  # the last has no tiles
        np.testing.assert_allclose(last[some], found.logits[some], atol=1e-4)
        told.append(found.logits)
    assert abs(told[0] - told[1])[some].max() > 1e-3


def test_a_policy_learns_to_zoom_where_it_pays():
    """Where low resolution shows suspects, and only zooming into them tells.

    The updater makes nothing of a row.
    """
    steps = lambda state, method, count: functools.reduce(
        lambda state, _: method.step(state, batch)[0], range(count), state
    )
    batch, found = split(slides(), ONE), stages()
    first = found["hafed"].method.init(jax.random.key(0), batch)
    hafed = steps(first, found["hafed"].method, 100).params["hafed"]
    begun = found["policy"].method.init(jax.random.key(0), batch)
    still = jax.tree.map(jnp.zeros_like, begun.params["updater"])
    known = {"hafed": hafed, "updater": still}
    begun = begun._replace(params=begun.params | known)
    learnt = steps(begun, found["policy"].method, 30).params
    other = slides(seed=1)  # of the same kind
    told = said(other, learnt)
    suspects = lambda one: zoomed(one)[:, :4].sum() / STEPS.sum()
    surprise = optax.softmax_cross_entropy_with_integer_labels
    loss = lambda one: surprise(one.logits, other.target)[:-1].mean()
    assert suspects(told["policy"]) > 1.5 * suspects(told["random"])
    assert loss(told["policy"]) < 0.75 * loss(told["random"])
    assert (told["policy"].trace["order"][:-1, 0] < 4).mean() > 0.8


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
    config_io.validate(config, "config.method")
    *parents, name = path.split(".")
    setattr(functools.reduce(getattr, parents, config), name, value)
    with pytest.raises(ValueError, match=rf"^--config\.method\.{re.escape(path)}="):
        config_io.validate(config, "config.method")
