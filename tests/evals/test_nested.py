"""Nested cross-validation: the slides that judge have no say."""

import numpy as np
import pytest

from wsi_jax.evals.nested import nested, rank

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
    found = nested(learners(np.random.default_rng(0)), LABEL, GROUPS, INNER)
    assert found.chosen == dict.fromkeys("abc", "signal")
    for group in "abc":
        mine = group == GROUPS
        assert found.scores[mine & (LABEL == 1)].min() > 0.5
        np.testing.assert_allclose(
            np.sort(found.scores[mine]), (np.arange(8) + 0.5) / 8
        )


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
    seen = []

    def learn(train):
        seen.append(train)
        return np.zeros(train.shape)

    nested({"constant": learn}, LABEL, GROUPS, INNER)
    assert {len(train) for train in seen} == {7}
    for train, group in zip(seen, "abc", strict=True):
        assert not train[:, group == GROUPS].any()
        assert train[4, group != GROUPS].all()  # the last fold learns from all others


def test_an_inner_group_in_two_outer_ones_is_refused():
    with pytest.raises(ValueError, match=r"'x' lies in outer groups \['a', 'b'"):
        nested({}, LABEL, GROUPS, ["x"] * 24)


def test_ties_rank_in_the_middle():
    np.testing.assert_allclose(rank(np.array([3.0, 1, 3, 9])), [0.5, 0.125, 0.5, 0.875])
