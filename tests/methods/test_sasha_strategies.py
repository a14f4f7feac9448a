"""SASHA's strategies: which tiles they zoom into, and what predictions rest on."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from sasha_cases import (
    CONFIG,
    COUNTS,
    MASK,
    NAMES,
    ONE,
    STEPS,
    TASK,
    ZOOMING,
    apply,
    config_with,
    predictions,
    slides,
    stages,
    state,
    zoom_mask,
)

from wsi_jax.nets.hafed import HAFED
from wsi_jax.nets.policy import Actor, Updater
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.training.compile import compile_each, split
from wsi_jax.types import TwoLevelFeatures


def overwritten(bag, low=None, high=None, junk=1e3):
    """The bag with junk at the tiles of these masks."""
    put = lambda a, at: (
        a
        if at is None
        else np.where(at.reshape(at.shape + (1,) * (a.ndim - 2)), junk, a)
    )
    x = TwoLevelFeatures(
        np.float32(put(bag.x.low, low)), np.float32(put(bag.x.high, high))
    )
    return bag._replace(x=x)


def test_every_strategy_predicts():
    """Attention sums to 1 over tiles, and what was read is counted."""
    results = predictions()
    assert set(results) == set(NAMES)
    for name, one in results.items():
        assert one.logits.shape == (8, 3)
        assert np.isfinite(one.logits).all()
        np.testing.assert_allclose(one.attention[:-1].sum(-1), 1, rtol=1e-5)
        assert not one.attention[~MASK].any()
        zooms = {"low_resolution": 0, "full_resolution": COUNTS}.get(name, STEPS)
        np.testing.assert_array_equal(one.counts["tiles"], COUNTS + 4 * zooms)
        assert (one.counts["flops"][:-1] > 0).all()
    for name in ZOOMING:
        chosen = zoom_mask(results[name])  # and no tile twice
        np.testing.assert_array_equal(chosen.sum(-1), STEPS)
        assert not chosen[~MASK].any()
        logits = results[name].logits[:-1]
        last = results[name].trace["logits"][:-1, -1]
        same = name != "only_zoomed_tiles"  # its trace holds the logits of all tiles
        assert np.allclose(logits, last, atol=1e-4) == same


def test_one_resolution_rests_on_itself_alone():
    before = predictions()
    for name, other in (("full_resolution", "low"), ("low_resolution", "high")):
        bag = overwritten(slides(), **{other: MASK}, junk=np.nan)
        after = predictions(bag)[name]
        np.testing.assert_array_equal(after.logits, before[name].logits)
        np.testing.assert_array_equal(after.attention, before[name].attention)


@pytest.mark.parametrize("name", [name for name in ZOOMING if name != "oracle"])
def test_unread_tiles_never_change_a_prediction(name):
    """Bit by bit; the tiles zoomed into do."""
    before = predictions()[name]
    chosen = zoom_mask(before)
    unread = predictions(overwritten(slides(), high=~chosen))[name]
    chex.assert_trees_all_equal(unread, before)
    read = predictions(overwritten(slides(), high=chosen, junk=9))[name]
    assert (read.logits != before.logits)[:-1].any(-1).all()


def test_strategies_choose_by_their_rule():
    results = predictions()
    rank = apply(Actor(6), state("ranking").params["ranking"], slides().x.low)
    for name, score in (
        ("low_attention", results["low_resolution"].attention),
        ("oracle", results["full_resolution"].attention),
        ("ranking", rank),
    ):
        best = np.argsort(-np.where(MASK, score, -np.inf), 1, kind="stable")
        for i, steps in enumerate(STEPS):
            order = results[name].trace["order"][i, :steps]
            np.testing.assert_array_equal(order, best[i, :steps])
    for i, steps in enumerate(STEPS[:-1]):
        (places,) = np.nonzero(zoom_mask(results["grid"])[i])
        gaps = np.diff([*places, places[0] + COUNTS[i]])
        assert set(gaps) <= {COUNTS[i] // steps, -(-COUNTS[i] // steps)}
    again = predictions(key=1)
    for name in ZOOMING:
        same = (zoom_mask(again[name]) == zoom_mask(results[name])).all()
        assert same == (name != "random"), name


def test_rows_are_updated_by_the_rule_of_the_strategy():
    """No row, those alike, and every row: the logits differ in pairs."""
    names = "policy", "no_update", "all_updated"
    logits = [predictions()[name].logits for name in names]
    for one, other in zip(logits, logits[1:] + logits[:1], strict=True):
        assert (one != other)[:-1].any()


def test_a_global_update_is_of_every_row_at_every_step():
    """Again and again, until a tile is zoomed into itself."""
    params, prediction = state().params, predictions()["all_updated"]
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
    np.testing.assert_array_equal(prediction.trace["order"][2, : STEPS[2]], order)
    expected = hafed(z, np.ones(len(z), bool), method="classify").logits
    np.testing.assert_allclose(prediction.logits[2], expected, rtol=1e-3, atol=1e-4)


def test_distilled_slides_give_the_same_prediction():
    bag, stage = slides(), stages()["policy"]
    distilled = jax.jit(stages()["hafed"].distil)(state().params, bag.x)
    bag = split(bag._replace(x=distilled), ONE)
    prediction = stage.method.predict(state().params, bag, jax.random.key(0))
    close = {"rtol": 1e-4, "atol": 1e-5}
    chex.assert_trees_all_close(
        jax.device_get(prediction), predictions()["policy"], **close
    )


@pytest.mark.parametrize("share", [0.99, 1.0])
def test_a_share_of_one_is_full_resolution(share):
    """Also where every tile is zoomed into, one after another."""
    *_, stage = dataclasses.replace(CONFIG, zoom_share=share).stages(TASK)
    predict = compile_each(stage.method.predict, ONE)
    prediction = predict(state().params, split(slides(), ONE), jax.random.key(0))
    expected = predictions()["full_resolution"]
    np.testing.assert_allclose(prediction.logits, expected.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(prediction.counts["tiles"], 5 * COUNTS)
    assert (stage.rounds is None) == (share == 1)


def test_an_episode_ends_with_the_normaliser_of_its_config():
    """The fast path's last logits are those of the rows as they are in the end."""
    logits = []
    for normaliser in (Normaliser.softmax, Normaliser.squared_average):
        config = config_with(hafed={"normaliser": normaliser})
        predict = jax.jit(config.stages(TASK)[-1].method.predict)
        one = predict(state().params, split(slides(), ONE), jax.random.key(0))
        # A slide of fewer steps than the fullest ends earlier.
        last = np.take_along_axis(one.trace["logits"], STEPS[:, None, None], 1)[:, 0]
        some = slice(-1)  # the last has no tiles
        np.testing.assert_allclose(last[some], one.logits[some], atol=1e-4)
        logits.append(one.logits)
    assert abs(logits[0] - logits[1])[some].max() > 1e-3
