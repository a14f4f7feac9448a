"""Intervals of shares: of patients, of both their classes, never empty."""

import numpy as np
import pytest

from wsi_jax.evals import confusion_intervals as module
from wsi_jax.evals import intervals, metrics
from wsi_jax.evals.confusion_intervals import confusion_intervals

NAMES = ("accuracy", "balanced_accuracy", "f1", "sensitivity", "specificity")


def predictions(seed, n=60, c=2):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % c
    predicted = np.where(rng.random(n) < 0.75, labels, rng.integers(0, c, n))
    return labels, predicted


def test_one_slide_a_patient_is_wilsons():
    """And patients who are all right are as many as they are."""
    labels, predicted = predictions(0)
    ends = confusion_intervals(labels, predicted, 2)
    ill, right = predicted[labels == 1].mean(), (predicted == labels).mean()
    assert ends["sensitivity"] == (ill, *intervals.wilson(ill, 30))
    assert ends["accuracy"] == (right, *intervals.wilson(right, 60))
    labels = np.repeat([0, 1], 30)
    ends = confusion_intervals(labels, labels, 2, np.arange(60) // 5)
    assert ends["sensitivity"] == (1, *intervals.wilson(1.0, 6))
    assert ends["balanced_accuracy"].lo < 0.9


@pytest.mark.parametrize("c", [2, 3])
def test_slopes_are_derivatives(c):
    matrix = np.random.default_rng(1).integers(1, 20, (c, c)).astype(float)
    for measure in (module._balanced_accuracy, module._f1, module._macro_f1):
        value, slope = measure(matrix)
        for i, j in np.ndindex(c, c):
            moved = matrix.copy()
            moved[i, j] += 1e-6
            gap = (measure(moved)[0] - value) / 1e-6
            assert slope[i, j] == pytest.approx(gap, abs=1e-5)


@pytest.mark.parametrize("c", [2, 3])
def test_values_are_the_metrics(c):
    labels, predicted = predictions(2, c=c)
    ends = confusion_intervals(labels, predicted, c, np.arange(60) // 4)
    threshold = 0.5 if c == 2 else None
    values = metrics.slide_metrics(labels, np.eye(c)[predicted], threshold)
    for name, interval in ends.items():
        assert interval.value == pytest.approx(values[name])
        assert interval.lo < interval.value < interval.hi
    assert set(ends) == set(NAMES[: 5 if c == 2 else 3])


def widths(labels, predicted, patients):
    ends = confusion_intervals(labels, predicted, 2, patients)
    return {name: ends[name].hi - ends[name].lo for name in NAMES}


def test_copies_of_a_patients_slide_say_nothing_new():
    labels, predicted = predictions(3)
    alone = widths(labels, predicted, np.arange(60))
    thrice = widths(*(np.repeat(x, 3) for x in (labels, predicted, np.arange(60))))
    for name in NAMES:  # wider by what t has over the normal, and no narrower
        assert 0.99 < thrice[name] / alone[name] < 1.09, name


def test_errors_in_both_classes_of_a_patient_add_up_or_cancel():
    labels = np.tile([0, 1], 40)
    patients = np.arange(80) // 2
    right = np.repeat(np.random.default_rng(4).random(40) < 0.7, 2)
    together = np.where(right, labels, 1 - labels)  # both slides right, or both wrong
    apart = together.copy()
    apart[labels == 0] = np.roll(apart[labels == 0], 20)
    both = [widths(labels, p, patients)["balanced_accuracy"] for p in (together, apart)]
    alone = widths(labels, together, np.arange(80))["balanced_accuracy"]
    assert both[0] > 1.25 * alone
    assert both[1] < 1.15 * alone


def test_a_class_without_slides_leaves_the_others():
    ends = confusion_intervals(np.zeros(9, int), np.arange(9) % 2, 2)
    for name in ("balanced_accuracy", "f1", "sensitivity"):
        assert np.isnan(ends[name]).all()
    assert ends["specificity"] == ends["accuracy"]
