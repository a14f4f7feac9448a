"""The bootstrap draws whole patients within their class, and repeats with its seed."""

import numpy as np
import pytest

from wsi_jax.evals import intervals
from wsi_jax.evals.bootstrap import bootstrap, roc_band
from wsi_jax.evals.metrics import auc


def draw(seed, m=15, n=22):
    positive = np.r_[np.ones(m, bool), np.zeros(n, bool)]
    scores = np.random.default_rng(seed).normal(size=m + n) + positive
    return positive, np.round(scores, 1)


def test_the_bootstrap_agrees_with_delong_and_a_seed_is_a_draw():
    positive, scores = draw(4, m=90, n=110)
    statistic = lambda weights: {"auc": auc(positive, scores, weights)}
    cohort = statistic, np.arange(200), positive.astype(int)
    ends = lambda seed: bootstrap(*cohort, seed=seed, replicates=2000)["auc"]
    one = ends(0)
    expected = intervals.delong(positive, scores)[1:]
    np.testing.assert_allclose(one, expected, atol=0.01)
    assert one == ends(0)
    assert one != ends(1)


def test_patients_are_drawn_whole_and_within_their_class():
    patients = np.array(["a", "a", "b", "c", "c", "d"])
    labels = np.array([0, 1, 1, 0, 0, 0])  # a and b are ill, c and d are not
    drawn = []

    def keep(weights):
        drawn.append(weights)
        return {"n": weights.sum(-1)}

    bootstrap(keep, patients, labels, seed=0, replicates=50)
    (weights,) = drawn
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    np.testing.assert_array_equal(weights[:, 3], weights[:, 4])
    assert (weights[:, 0] + weights[:, 2] == 2).all()
    assert (weights[:, 3] + weights[:, 5] == 2).all()
    assert len(np.unique(weights, axis=0)) == 9


def test_a_statistic_that_is_mostly_undefined_has_no_interval():
    def half(weights):
        return {"x": np.where(np.arange(len(weights)) % 2, np.nan, 1.0)}

    ends = bootstrap(half, ["a", "b"], np.array([0, 1]), seed=0, replicates=100)
    assert np.isnan(ends["x"]).all()


def test_the_roc_band_holds_the_curve_and_ends_at_one():
    positive, scores = draw(6, m=40, n=40)
    grid = np.linspace(0, 1, 11)
    lo, hi = roc_band(positive, scores, np.arange(80), grid, seed=0, replicates=300)
    assert (lo <= hi).all()
    assert (np.diff(lo) >= 0).all()
    assert lo[-1] == hi[-1] == 1
    middle = ((lo + hi) / 2).mean()
    assert middle == pytest.approx(auc(positive, scores), abs=0.05)
