"""Nested cross-validation: the slides that judge have no say."""

import numpy as np
import pytest

from benchmarks.nested_cv import nested
from wsi_jax.evals.metrics import auc

GROUPS = np.repeat(["a", "b", "c"], 8)
INNER = np.array([f"{group}{i // 4}" for i, group in enumerate(GROUPS)])
LABEL = np.tile([0, 1], 12)


def by_slope(feature, label=LABEL):
    """Learns which way a feature points from the training slides alone."""
    slope = lambda row: np.polyfit(feature[row], label[row], 1)[0]
    return lambda train: np.stack([slope(row) * feature for row in train])


def test_the_learner_that_holds_on_inner_folds_is_chosen():
    noise = np.random.default_rng(0).normal(size=24)
    learners = {"noise": by_slope(noise), "signal": by_slope(LABEL + 0.1 * noise)}
    result = nested(learners, LABEL, GROUPS, INNER)
    assert result.chosen == dict.fromkeys("abc", "signal")
    for group in "abc":
        mine = group == GROUPS
        assert auc(LABEL[mine] == 1, result.scores[mine]) == 1


def test_labels_of_the_test_slides_decide_nothing():
    features = np.random.default_rng(1).normal(size=(2, 24))
    learners = lambda y: {str(i): by_slope(x, y) for i, x in enumerate(features)}
    mine = GROUPS == "b"
    before, after = (
        nested(learners(y), y, GROUPS, INNER)
        for y in (LABEL, np.where(mine, 1 - LABEL, LABEL))
    )
    np.testing.assert_array_equal(before.scores[mine], after.scores[mine])
    assert before.chosen["b"] == after.chosen["b"]


def test_every_call_has_as_many_rows_and_never_a_test_slide():
    trained = []

    def learn(train):
        trained.append(train)
        return np.zeros(train.shape)

    nested({"constant": learn}, LABEL, GROUPS, INNER)
    assert {len(train) for train in trained} == {7}
    for train, group in zip(trained, "abc", strict=True):
        assert not train[:, group == GROUPS].any()
        assert train[4, group != GROUPS].all()  # the last fold learns from all others


def on_scales(scores):
    """A learner whose models, one a row, have a scale of their own."""

    def learn(train):
        held = (~train).sum(1)[:, None]
        return scores * (1 + held) + 10 * held

    return learn


def test_small_groups_and_scales_of_models_leave_the_auc_as_it_is():
    rng, label = np.random.default_rng(0), np.arange(60) % 2
    outer, aucs = np.arange(60) // 5, []  # groups of five, each with both classes
    for _ in range(60):
        scores = rng.normal(size=60) + 1.4657 * label
        result = nested({"one": on_scales(scores)}, label, outer, outer)
        aucs.append(auc(label == 1, result.scores, groups=outer))
        assert aucs[-1] == auc(label == 1, scores, groups=outer)
    # Three standard errors of 60 cohorts; ranks pooled give .786.
    assert np.mean(aucs) == pytest.approx(0.85, abs=0.025)


def test_the_choice_counts_pairs_within_inner_groups():
    # Groups that are mostly ill have high scores, which tells nothing within a group.
    label = np.tile([1, 1, 1, 0, 0, 0, 0, 1], 12)
    inner, outer = np.arange(96) // 4, np.arange(96) // 32
    rng = np.random.default_rng(3)
    shifted = rng.normal(size=96) - 100 * (inner % 2)
    good = label + 1.3 * rng.normal(size=96)
    assert auc(label == 1, shifted) > auc(label == 1, good)
    learn = lambda scores: lambda train: scores + 0 * train
    learners = {"shifted": learn(shifted), "good": learn(good)}
    result = nested(learners, label, outer, inner)
    assert set(result.chosen.values()) == {"good"}


def test_groups_that_cannot_choose_are_refused():
    constant = {"one": lambda train: np.zeros(train.shape)}
    with pytest.raises(ValueError, match=r"'x' lies in outer groups \['a', 'b'"):
        nested(constant, LABEL, GROUPS, ["x"] * 24)
    with pytest.raises(ValueError, match="no inner group has slides of both classes"):
        nested(constant, LABEL, GROUPS, np.arange(24))
