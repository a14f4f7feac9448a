"""Nested cross-validation: the slides that judge have no say."""

import numpy as np
import pytest

from benchmarks.nested_cv import nested
from wsi_jax.evals.metrics import auc

GROUPS = np.repeat(["a", "b", "c"], 8)
INNER = np.array([f"{group}{i // 4}" for i, group in enumerate(GROUPS)])
LABEL = np.tile([0, 1], 12)


def by_mean(feature):
    """Learns which way a feature points from the training slides alone."""

    def learn(train):
        way = [
            np.sign(
                feature[row & (LABEL == 1)].mean() - feature[row & (LABEL == 0)].mean()
            )
            for row in train
        ]
        return np.stack(way)[:, None] * feature

    return learn


def learners(rng):
    noise = rng.normal(size=24)
    return {"noise": by_mean(noise), "signal": by_mean(LABEL + 0.1 * noise)}


def test_the_learner_that_holds_on_inner_folds_is_chosen():
    result = nested(learners(np.random.default_rng(0)), LABEL, GROUPS, INNER)
    assert result.chosen == dict.fromkeys("abc", "signal")
    for group in "abc":
        mine = group == GROUPS
        assert auc(LABEL[mine] == 1, result.scores[mine]) == 1


def test_labels_of_the_test_slides_decide_nothing():
    rng = np.random.default_rng(1)
    feature, other = rng.normal(size=(2, 24))

    def blind(label):
        """Learners whose every look at labels is recorded by what they were given."""
        looks = {"feature": feature, "other": other}

        def learn(x):
            def one(row):
                slope = np.polyfit(x[row], label[row], 1)[0]
                return slope * x

            return lambda train: np.stack([one(row) for row in train])

        return {name: learn(x) for name, x in looks.items()}

    turned = LABEL.copy()
    turned[GROUPS == "b"] = 1 - turned[GROUPS == "b"]
    before = nested(blind(LABEL), LABEL, GROUPS, INNER)
    after = nested(blind(turned), turned, GROUPS, INNER)
    mine = GROUPS == "b"
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


def test_an_inner_group_in_two_outer_ones_is_refused():
    with pytest.raises(ValueError, match=r"'x' lies in outer groups \['a', 'b'"):
        nested({}, LABEL, GROUPS, ["x"] * 24)


def on_scales(scores, shift):
    """A learner whose models, one a row, have a scale of their own."""

    def learn(train):
        held = (~train).sum(1)[:, None]
        return scores * (1 + held) + shift * held + 0 * train

    return learn


def test_small_groups_and_scales_of_models_leave_the_auc_as_it_is():
    rng, label, truth = np.random.default_rng(0), np.arange(60) % 2, 0.85
    aucs = []
    for _ in range(60):
        scores = rng.normal(size=60) + 1.4657 * label
        outer = np.arange(60) // 5  # groups of five, each with both classes
        result = nested({"one": on_scales(scores, 10)}, label, outer, outer)
        aucs.append(auc(label == 1, result.scores, groups=outer))
        assert aucs[-1] == auc(label == 1, scores, groups=outer)
    # Three standard errors of 60 cohorts; ranks pooled give .786.
    assert np.mean(aucs) == pytest.approx(truth, abs=0.025)


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


def test_inner_groups_of_one_class_cannot_choose():
    with pytest.raises(ValueError, match="no inner group has slides of both classes"):
        nested({"one": on_scales(np.arange(24.0), 0)}, LABEL, GROUPS, np.arange(24))
