"""How sure, in closed form: DeLong for AUC, Newcombe and Wilson where it fails.

Slides of one patient are not independent, so everything here counts patients.
Intervals are of confidence `LEVEL`. `patients` [n] are those of the slides, None where
each slide is one of its own; with `groups` [n], e.g. folds, only pairs of slides of one
group count, as in `metrics.auc`.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from wsi_jax.evals.metrics import Groups, divide, group_indices

LEVEL = 0.95


class Interval(NamedTuple):
    value: float
    lo: float
    hi: float


UNDEFINED = Interval(np.nan, np.nan, np.nan)


class Difference(NamedTuple):
    """Of two AUCs: value, interval, and two-sided p of no difference."""

    value: float
    lo: float
    hi: float
    p: float


def _influence(
    positive: np.ndarray, scores: np.ndarray, groups: Groups
) -> tuple[float, np.ndarray]:
    """AUC, and what each slide adds to its error [n] (DeLong's components).

    Of m positives and n negatives a positive that wins w of its n pairs adds
    (w - AUC n) / (m n), and a negative the same of its m pairs. With groups, w and n
    are those of the slide's own group, and m n is the sum. NaN where there is no pair.
    """
    won, pairs = np.empty(len(scores)), np.empty(len(scores))
    for at in group_indices(groups, len(scores)):
        up, own = positive[at], scores[at]
        m, n = up.sum(), (~up).sum()
        below = stats.rankdata(own)  # ties count one half: others below, and own ones
        below[up] -= stats.rankdata(own[up])
        below[~up] -= stats.rankdata(own[~up])
        won[at], pairs[at] = np.where(up, below, m - below), np.where(up, n, m)
    total = pairs[positive].sum()
    area = divide(won[positive].sum(), total)
    return float(area), divide(won - area * pairs, total)


def _variance(labels: np.ndarray, influence: np.ndarray, patients: np.ndarray) -> float:
    """Variance of an AUC from its influence [n], slides within patients.

    Obuchowski (1997); with one slide a patient it is DeLong et al. (1988). NaN where
    one patient holds all slides of a class.
    """
    ids, index = np.unique(patients, return_inverse=True)
    size, variance, total = len(ids), 0.0, np.zeros(len(ids))
    if size == 1:
        return np.nan
    for k in np.unique(labels):
        own = np.bincount(index[labels == k], influence[labels == k], size)
        count = len(np.unique(index[labels == k]))
        # A class's square has a correction of its own; products of two classes do not.
        correction = count / (count - 1) if count > 1 else np.nan
        variance += (correction - size / (size - 1)) * (own**2).sum()
        total += own
    return float(variance + size / (size - 1) * (total**2).sum())


def one_each(patients: Sequence[str] | np.ndarray | None, n: int) -> np.ndarray:
    """The patient of each of n slides; each its own when `patients` is None."""
    if patients is not None and len(patients) != n:
        raise ValueError(f"{len(patients)} patients for {n} slides")
    return np.arange(n) if patients is None else np.asarray(patients)


def class_patients(
    labels: np.ndarray, c: int, patients: Sequence[str] | np.ndarray | None = None
) -> np.ndarray:
    """How many patients have a slide of each class [c]."""
    each = one_each(patients, len(labels))
    return np.array([len(np.unique(each[labels == k])) for k in range(c)])


def quantile(freedom: int | np.integer | None = None) -> float:
    """Errors between a value and an end: of the normal, or of t with its freedom."""
    tail = (1 + LEVEL) / 2
    if freedom is None:
        return float(special.ndtri(tail))
    return float(special.stdtrit(max(1, freedom), tail))


def delong(
    positive: np.ndarray,
    scores: np.ndarray,
    patients: Sequence[str] | np.ndarray | None = None,
    groups: Groups = None,
) -> Interval:
    """AUC of one classifier with its interval; `positive` bool [n], `scores` [n].

    DeLong's variance, on the logit scale, where the interval stays within 0 and 1 and
    keeps its level with few slides, with quantiles of t where patients have several
    slides. Where that variance is zero or undefined (perfect separation, all scores
    tied, a class of one patient) nothing is certain all the same: Newcombe's interval
    is given. The groups' true AUCs are taken to be one. NaN throughout without a pair.
    """
    positive, scores = np.asarray(positive, bool), np.asarray(scores, np.float64)
    one = _influence(positive, scores, groups)
    return _area_interval(*one, positive.astype(np.int64), positive, patients, groups)


def macro_auc(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: Sequence[str] | np.ndarray | None = None,
    groups: Groups = None,
) -> Interval:
    """Mean of the AUCs of several classes, each against the rest, with its interval.

    As `delong`, with the mean of the classes' influences and one variance. Where it is
    zero, Newcombe's interval of the class that has fewest patients. `labels` are class
    indices [n], `probabilities` [n c].
    """
    c = probabilities.shape[1]
    each = [_influence(labels == k, probabilities[:, k], groups) for k in range(c)]
    areas, influences = zip(*each, strict=True)
    mean = float(np.mean(areas)), np.mean(influences, 0)
    rarest = labels == class_patients(labels, c, patients).argmin()
    return _area_interval(*mean, labels, rarest, patients, groups)


def _area_interval(area, influence, labels, rarest, patients, groups):
    """Interval of an AUC; without a variance that of the class `rarest` [n] and others.

    On the logit scale: from the middle the ends are `half` apart there.
    """
    patients = one_each(patients, len(labels))
    if np.isnan(area):
        return UNDEFINED
    variance = _variance(labels, influence, patients)
    if not variance > 1e-15:
        counts = _patients_of_each_class(rarest, patients, groups)
        return Interval(area, *newcombe(area, *counts))
    q = quantile(_freedom(labels, patients))
    return on_the_logit(area, q * np.sqrt(variance))


def on_the_logit(value: float, half: float) -> Interval:
    """A share strictly within 0 and 1, and ends `half` away, on the logit scale."""
    ends = special.logit(value) + np.array([-half, half]) / (value * (1 - value))
    return Interval(value, *map(float, special.expit(ends)))


def _freedom(labels, patients):
    """Of t, where patients have several slides: of the class with fewest patients.

    None, the normal, where each slide is a patient: DeLong's variance covers as it is.
    """
    if len(np.unique(patients)) == len(patients):
        return None
    return max(1, class_patients(labels, int(labels.max()) + 1, patients).min() - 1)


def delong_difference(
    positive: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    patients: Sequence[str] | np.ndarray | None = None,
    groups: Groups = None,
) -> Difference:
    """AUC of `a` less AUC of `b`, both on the same slides (DeLong et al., 1988).

    Scores in the same order are the same classifier: 0, exactly. Otherwise, where the
    variance is zero or undefined (two perfect classifiers), the two single intervals
    are combined as if independent, which errs on the wide side (Zou and Donner, 2008).
    `a` is not inferior by a margin when `lo > -margin`.
    """
    positive = np.asarray(positive, bool)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    patients = one_each(patients, len(positive))
    each = [_influence(positive, scores, groups) for scores in (a, b)]
    areas, influences = zip(*each, strict=True)
    if np.isnan(areas[0]):
        return Difference(np.nan, np.nan, np.nan, np.nan)
    alike = (
        np.array_equal(stats.rankdata(a[at]), stats.rankdata(b[at]))
        for at in group_indices(groups, len(a))
    )
    if all(alike):
        return Difference(0.0, 0.0, 0.0, 1.0)
    between = np.subtract(*influences)
    labels = positive.astype(np.int64)
    variance, freedom = _variance(labels, between, patients), _freedom(labels, patients)
    value = areas[0] - areas[1]
    q = quantile(freedom)
    if variance > 1e-15:
        below = above = q * np.sqrt(variance)
    else:
        one, two = (delong(positive, s, patients, groups) for s in (a, b))
        below = np.hypot(one.value - one.lo, two.hi - two.value)
        above = np.hypot(one.hi - one.value, two.value - two.lo)
    errors = q * abs(value) / (below if value > 0 else above)
    tail = special.ndtr if freedom is None else partial(special.stdtr, freedom)
    lo, hi = max(-1.0, value - below), min(1.0, value + above)
    return Difference(*map(float, (value, lo, hi, 2 * tail(-errors))))


def _patients_of_each_class(positive, patients, groups):
    """Patients with a positive slide, and with a negative one, in each group [g]."""
    each = [
        [len(np.unique(patients[at][of[at]])) for of in (positive, ~positive)]
        for at in group_indices(groups, len(positive))
    ]
    return np.array(each).T


def newcombe(
    area: float, positives: int | np.ndarray, negatives: int | np.ndarray
) -> tuple[float, float]:
    """Score interval of an AUC, never empty (Newcombe, 2006, method 5).

    The values theta with |area - theta| <= z sd(theta), sd after Hanley and McNeil
    (1982), evaluated at theta and not at `area`, where it may be zero. The numbers of
    positives and negatives are those of each group [g], if pairs count within groups.
    """
    pairs = np.multiply(positives, negatives)
    more = np.sum(pairs * (np.add(positives, negatives) / 2 - 1)) / pairs.sum()
    z = quantile()

    def beyond(theta):
        spread = 1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        variance = theta * (1 - theta) * spread / pairs.sum()
        return (area - theta) ** 2 - z**2 * variance

    # Beyond is positive at 0 and 1 and negative at `area`, unless `area` is the end.
    tiny = 1e-12
    lo = optimize.brentq(beyond, tiny, min(area, 1 - tiny)) if area > tiny else 0.0
    hi = optimize.brentq(beyond, max(area, tiny), 1 - tiny) if area < 1 - tiny else 1.0
    return float(lo), float(hi)


def wilson(share: float, n: int | float) -> tuple[float, float]:
    """Score interval of a proportion out of n, never empty (Wilson, 1927)."""
    z = quantile()
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    # At 0 and 1 the end is the share itself, but for rounding.
    return float(min(share, middle - half)), float(max(share, middle + half))
