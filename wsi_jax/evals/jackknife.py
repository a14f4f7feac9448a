"""Intervals by leaving out one patient after another: average precision, log loss."""

from collections.abc import Callable

import numpy as np

from wsi_jax.evals import metrics
from wsi_jax.evals.intervals import (
    Interval,
    class_patients,
    on_the_logit,
    one_each,
    quantile,
    wilson,
)


def jackknife_variance(
    statistic: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    patients: np.ndarray | None = None,
) -> float:
    """Variance of a statistic, by leaving out each patient (Efron and Stein, 1981).

    Patients are strata by class, the highest label of their slides; the classes' sums
    of squares are added, each times (p - 1) / p for p patients. The statistic takes
    weights of slides [r n] to values [r].
    """
    each = one_each(patients, len(labels))
    ids, index, strata = metrics.patient_labels(labels, each)
    step = max(1, 2**20 // len(index))  # rows that fit a cache
    left = np.concatenate(
        [
            statistic((index != np.arange(k, min(k + step, len(ids)))[:, None]) * 1.0)
            for k in range(0, len(ids), step)
        ]
    )
    classes = [left[strata == k] for k in np.unique(strata)]
    return float(sum((len(own) - 1) * own.var() for own in classes))


def average_precision_interval(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray | None = None,
) -> Interval:
    """Average precision, of several classes their mean, with its interval.

    The jackknife on the logit with quantiles of t, of twice the freedom that the rarest
    class has alone (less covers more, and is wider than need be). Where nothing varies
    (perfect precision) it is Wilson's of as many trials as the rarest class has
    patients. NaN ends where a class has one patient or none.
    """

    def statistic(weights):
        return metrics.mean_average_precision(labels, probabilities, weights)

    value = float(statistic(np.ones(len(labels))))
    fewest = class_patients(labels, probabilities.shape[1], patients).min()
    if fewest < 2:
        return Interval(value, np.nan, np.nan)
    variance = jackknife_variance(statistic, labels, patients)
    if not variance > 1e-15:
        return Interval(value, *wilson(value, int(fewest)))
    return on_the_logit(value, quantile(2 * (fewest - 1)) * np.sqrt(variance))


def log_loss_interval(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray | None = None,
) -> Interval:
    """Log loss with its interval: the jackknife on the logarithm, quantiles of t.

    A model that is hardly ever wrong has most of its loss in slides too rare to be in a
    small split: with an AUC of .98 and 30 patients the interval covers 86 %, not 95 %.
    """

    def statistic(weights):
        return metrics.log_loss(labels, probabilities, weights)

    value = float(statistic(np.ones(len(labels))))
    counts = class_patients(labels, probabilities.shape[1], patients)
    fewest = counts[counts > 0].min()
    if fewest < 2 or value <= 0:
        return Interval(value, np.nan, np.nan)
    error = np.sqrt(jackknife_variance(statistic, labels, patients)) / value
    times = np.exp(quantile(fewest - 1) * error)
    return Interval(value, value / float(times), value * float(times))
