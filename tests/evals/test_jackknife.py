"""The jackknife of a mean is its variance; of a ranking, what leaving out does."""

import numpy as np
import pytest
from scipy import special, stats

from wsi_jax.evals import jackknife, metrics

LABELS = np.repeat([0, 1], [14, 9])


def draw(c=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(24) % c if c > 2 else LABELS
    logits = rng.normal(size=(len(labels), c)) + 1.2 * np.eye(c)[labels]
    return labels, special.softmax(logits, -1)


def test_of_a_mean_it_is_the_stratified_variance():
    x = np.random.default_rng(0).normal(size=23)
    interval = jackknife.jackknife_variance(lambda w: w @ x / w.sum(-1), LABELS)
    of = [x[k == LABELS] for k in (0, 1)]
    # Without one slide the mean moves by its distance to it, over n - 1.
    expected = sum((len(y) - 1) * y.var() / 22**2 for y in of)
    assert interval == pytest.approx(expected)


@pytest.mark.parametrize("c", [2, 3])
def test_average_precision_is_left_out_patient_by_patient(c):
    labels, p = draw(c)
    patients = np.arange(len(labels)) // 2 if c == 2 else np.arange(len(labels))
    interval = jackknife.average_precision_interval(labels, p, patients)
    left, stratum = [], []
    for one in np.unique(patients):
        rest = patients != one
        left.append(metrics.slide_metrics(
            labels[rest], p[rest], 0.5 if c == 2 else None
        )["average_precision"])  # fmt: skip
        stratum.append(labels[~rest].max())
    left, stratum = np.array(left), np.array(stratum)
    each = [left[stratum == k] for k in range(c)]
    variance = sum((len(x) - 1) / len(x) * ((x - x.mean()) ** 2).sum() for x in each)
    fewest = min(len(np.unique(patients[labels == k])) for k in range(c))
    q = stats.t.ppf(0.975, 2 * (fewest - 1))
    half = q * np.sqrt(variance) / (interval.value * (1 - interval.value))
    ends = special.expit(special.logit(interval.value) + np.array([-half, half]))
    np.testing.assert_allclose(interval[1:], ends)


def test_perfect_precision_is_as_sure_as_the_rarest_class_has_patients():
    """Of one patient it has no interval at all."""
    interval = jackknife.average_precision_interval(LABELS, np.eye(2)[LABELS])
    assert interval.value == interval.hi == 1
    assert interval.lo == pytest.approx(1 / (1 + stats.norm.ppf(0.975) ** 2 / 9))
    labels, p = draw()
    value, *ends = jackknife.average_precision_interval(labels[:15], p[:15])
    assert not np.isnan(value)
    assert np.isnan(ends).all()


def test_copies_of_slides_leave_the_log_loss_as_sure():
    labels, p = draw()
    one = jackknife.log_loss_interval(labels, p)
    both = np.repeat(np.arange(23), 2)
    two = jackknife.log_loss_interval(labels[both], p[both], both)
    np.testing.assert_allclose(one, two)
    assert 0 < one.lo < one.value < one.hi
