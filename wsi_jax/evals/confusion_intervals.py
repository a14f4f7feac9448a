"""Intervals of what a confusion matrix tells: recall, accuracy, balanced accuracy, F1.

A share of slides has Wilson's interval. Means and ratios of shares have the delta
method's on a matrix with a few slides added (Agresti and Caffo, 2000; Price and Bonett,
2004), so that nothing is certain for having been right each time. Slides of a patient
are not independent: all counts are divided by the design effect (Kish, 1965). Labels
are taken as given: classes have the sizes that they have.

`benchmarks/coverage.py` measures how often these intervals hold the truth.
"""

from collections.abc import Callable

import numpy as np

from wsi_jax.evals.intervals import UNDEFINED, Interval, one_each, quantile, wilson

# Most slides added to the right and to the wrong ones of a class. Price and Bonett add
# 2 / c for c classes, Agresti and Caffo one for two: there three quarters cover better.
ADDED = 0.75
NOTHING = 1e-12


def confusion_intervals(
    labels: np.ndarray,
    predicted: np.ndarray,
    c: int,
    patients: np.ndarray | None = None,
) -> dict[str, Interval]:
    """Intervals of accuracy, balanced accuracy and F1, as `slide_metrics` has them.

    Args:
        labels, predicted: class indices [n].
        c: number of classes; with two, sensitivity and specificity are there as well
            and F1 is that of the second, with more the mean over the classes.
        patients: of each slide [n]; None: each slide is a patient.
    """
    ids, index = np.unique(one_each(patients, len(labels)), return_inverse=True)
    cell = (index * c + labels) * c + predicted
    counts = np.bincount(cell, minlength=len(ids) * c * c).reshape(-1, c, c)
    hit, there = np.diagonal(counts, axis1=1, axis2=2), counts.sum(2)
    intervals = {
        "accuracy": proportion(hit.sum(1), there.sum(1)),
        "balanced_accuracy": _smoothed(counts, _balanced_accuracy),
        "f1": _smoothed(counts, _f1 if c == 2 else _macro_f1),
    }
    if c == 2:
        intervals["sensitivity"] = proportion(hit[:, 1], there[:, 1])
        intervals["specificity"] = proportion(hit[:, 0], there[:, 0])
    return intervals


def proportion(hits: np.ndarray, counts: np.ndarray) -> Interval:
    """A share of slides that lie in patients, with its interval (Wilson, 1927).

    The number of slides is divided by the design effect, the variance between patients
    over that of independent slides, and by (t / z)^2, as the effect is an estimate
    (Korn and Graubard, 1998). Where all slides are alike it is the number of patients.
    Takes of each patient [p] the slides that count, and all; NaN without slides.
    """
    slides, patients = counts.sum(), np.count_nonzero(counts)
    if slides == 0:
        return UNDEFINED
    share, n = hits.sum() / slides, slides
    if slides > patients:
        n = patients
        alone = share * (1 - share) * slides / (slides - 1)
        if patients > 1 and alone > NOTHING:
            squares = ((hits - share * counts) ** 2).sum() / slides
            effect = squares * patients / (patients - 1) / alone
            effect *= (quantile(patients - 1) / quantile()) ** 2
            n = np.clip(slides / effect, 1, slides)
    return Interval(float(share), *wilson(share, float(n)))


def _smoothed(
    counts: np.ndarray, measure: Callable[[np.ndarray], tuple[float, np.ndarray]]
) -> Interval:
    """Interval of a measure of the confusion matrix [c c] of patients' slides [p c c].

    The delta method on multinomial rows. `measure` gives its value at a matrix and its
    derivative by each cell. To the right ones of a row, and to the wrong ones, as many
    slides are added. NaN ends where a class has no slide.
    """
    matrix = counts.sum(0).astype(np.float64)
    c, rows = len(matrix), matrix.sum(1)
    if (rows == 0).any():
        return UNDEFINED
    value, slope = measure(matrix)
    shares = matrix / rows[:, None]
    effect, q = 1.0, quantile()
    if rows.sum() > len(counts):
        errors = (slope * (counts - shares * counts.sum(2, keepdims=True))).sum((1, 2))
        effect = _design_effect(errors, (rows * _variances(shares, slope)).sum(), rows)
        q = quantile(np.count_nonzero(counts.sum(2), axis=0).min() - 1)
    n, added = rows / effect, min(ADDED, 2 / c)
    extra = np.full((c, c), added / (c - 1))
    np.fill_diagonal(extra, added)
    smooth = (n[:, None] * shares + extra) / (n + 2 * added)[:, None]
    middle, slope = measure(n[:, None] * smooth)
    variance = (n**2 / (n + 2 * added) * _variances(smooth, slope)).sum()
    half = q * np.sqrt(variance)
    lo, hi = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(float(value), float(min(lo, value)), float(max(hi, value)))


def _variances(shares, slope):
    """Of the slope of a slide drawn from each row [c]."""
    return (shares * slope**2).sum(1) - (shares * slope).sum(1) ** 2


def _design_effect(errors, alone, rows):
    """Variance between patients over that of slides alone, at least one.

    Takes what each patient adds to the error [p], the sum of squares that independent
    slides would have, and the slides of each class [c].
    """
    c, slides, patients = len(rows), rows.sum(), len(errors)
    if alone < NOTHING or patients <= c:
        return slides / patients
    between = (errors**2).sum() * patients / (patients - c)
    return max(1.0, between / (alone * slides / (slides - c)))


def _balanced_accuracy(matrix):
    hit, rows, eye = np.diag(matrix), matrix.sum(1), np.eye(len(matrix))
    slope = eye / rows[:, None] - (hit / rows**2)[:, None]
    return np.mean(hit / rows), slope / len(matrix)


def _f1_scores(matrix):
    """F1 of each class k, 2 hit / (labelled + called), and derivatives [k i j]."""
    hit, eye = np.diag(matrix), np.eye(len(matrix))
    both = matrix.sum(1) + matrix.sum(0)
    slope = 2 * (eye[:, :, None] * eye[:, None, :]) / both[:, None, None]
    slope -= (2 * hit / both**2)[:, None, None] * (eye[:, :, None] + eye[:, None, :])
    return 2 * hit / both, slope


_f1 = lambda matrix: tuple(each[1] for each in _f1_scores(matrix))
_macro_f1 = lambda matrix: tuple(each.mean(0) for each in _f1_scores(matrix))
