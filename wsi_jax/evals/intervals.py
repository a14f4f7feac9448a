"""How sure, in closed form: DeLong for AUC, Newcombe and Wilson where it fails.

Slides of one patient are not independent, so everything here counts patients.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from wsi_jax.evals.ranking import divide, parts

LEVEL = 0.95

Groups = Sequence | np.ndarray | None


class Interval(NamedTuple):
    value: float
    lo: float
    hi: float


class Difference(NamedTuple):
    """Of two AUCs: value, interval, and two-sided p of no difference."""

    value: float
    lo: float
    hi: float
    p: float


def _influence(
    positive: np.ndarray, scores: np.ndarray, groups: Groups = None
) -> tuple[float, np.ndarray]:
    """AUC, and what each slide adds to its error [n] (DeLong's components, by ranks).

    Of m positives and n negatives a positive that wins w of its n pairs adds
    (w - AUC n) / (m n), and a negative the same of its m pairs (Sun and Xu, 2014: three
    rankings, n log n). With groups, the AUC is the won pairs of all groups over all
    their pairs; w and n of a slide are those of its own group, and m n is the sum.
    NaN where there is no pair.
    """
    won, pairs = np.empty(len(scores)), np.empty(len(scores))
    for at in parts(groups, len(scores)):
        up, own = positive[at], scores[at]
        m, n = up.sum(), (~up).sum()
        ranks, wins = stats.rankdata(own), np.empty(len(own))
        wins[up] = ranks[up] - stats.rankdata(own[up])
        wins[~up] = m - (ranks[~up] - stats.rankdata(own[~up]))
        won[at], pairs[at] = wins, np.where(up, n, m)
    total = pairs[positive].sum()
    area = divide(won[positive].sum(), total)
    return float(area), divide(won - area * pairs, total)


def _covariance(
    positive: np.ndarray, influences: np.ndarray, patients: np.ndarray
) -> np.ndarray:
    """Covariance [a a] of a AUCs from their influences [a n], slides within patients.

    Obuchowski (1997); with one slide a patient it is DeLong et al. (1988). NaN where
    one patient holds all positives, or all negatives.
    """
    _, index = np.unique(patients, return_inverse=True)
    size = index.max() + 1

    def sums(rows):
        rows = [np.bincount(index[rows], one[rows], size) for one in influences]
        return np.array(rows)

    def correct(count):
        return count / (count - 1) if count > 1 else np.nan

    up, down = sums(positive), sums(~positive)
    across = up @ down.T
    return (
        correct(len(np.unique(index[positive]))) * up @ up.T
        + correct(len(np.unique(index[~positive]))) * down @ down.T
        + correct(size) * (across + across.T)
    )


def one_each(patients: Sequence[str] | np.ndarray | None, n: int) -> np.ndarray:
    """The patient of each of n slides; each its own when `patients` is None."""
    if patients is not None and len(patients) != n:
        raise ValueError(f"{len(patients)} patients for {n} slides")
    return np.arange(n) if patients is None else np.asarray(patients)


def _z(level: float) -> float:
    return float(special.ndtri((1 + level) / 2))


def delong(
    positive: np.ndarray,
    scores: np.ndarray,
    patients: Sequence[str] | np.ndarray | None = None,
    level: float = LEVEL,
    groups: Groups = None,
) -> Interval:
    """AUC of one classifier with its interval.

    DeLong's variance, on the logit scale, where the interval stays within 0 and 1 and
    keeps its level with few slides. Where that variance is zero or undefined (perfect
    separation, all scores tied, a class of one patient) nothing is certain all the
    same: Newcombe's interval is given.

    Args:
        positive: bool [n].
        scores: [n].
        patients: of each slide [n]; None: each slide is a patient.
        level: of confidence.
        groups: of each slide [n], e.g. its fold: only pairs within a group count, as in
            `ranking.auc`. The groups' true AUCs are taken to be one.

    Returns:
        NaN throughout where there is no pair, a class being missing.
    """
    positive, scores = np.asarray(positive, bool), np.asarray(scores, np.float64)
    patients = one_each(patients, len(scores))
    area, influence = _influence(positive, scores, groups)
    if np.isnan(area):
        return Interval(np.nan, np.nan, np.nan)
    variance = _covariance(positive, influence[None], patients)[0, 0]
    if not variance > 1e-15:
        counts = _patients_of_each_class(positive, patients, groups)
        return Interval(area, *newcombe(area, *counts, level))
    middle = special.logit(area)
    half = _z(level) * np.sqrt(variance) / (area * (1 - area))
    return Interval(area, *map(float, special.expit([middle - half, middle + half])))


def delong_difference(
    positive: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    patients: Sequence[str] | np.ndarray | None = None,
    level: float = LEVEL,
    groups: Groups = None,
) -> Difference:
    """AUC of `a` less AUC of `b`, both on the same slides (DeLong et al., 1988).

    Scores in the same order are the same classifier: 0, exactly. Otherwise, where the
    variance is zero or undefined (two perfect classifiers), the two single intervals
    are combined as if independent, which errs on the wide side (Zou and Donner, 2008).
    Arguments as `delong`. `a` is not inferior by a margin when `lo > -margin`.
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
        for at in parts(groups, len(a))
    )
    if all(alike):
        return Difference(0.0, 0.0, 0.0, 1.0)
    between = np.subtract(*influences)
    variance = _covariance(positive, between[None], patients)[0, 0]
    value = areas[0] - areas[1]
    if variance > 1e-15:
        below = above = _z(level) * np.sqrt(variance)
    else:
        one, two = (delong(positive, s, patients, level, groups) for s in (a, b))
        below = np.hypot(one.value - one.lo, two.hi - two.value)
        above = np.hypot(one.hi - one.value, two.value - two.lo)
    towards_zero = below if value > 0 else above
    p = 2 * special.ndtr(-_z(level) * abs(value) / towards_zero)
    lo, hi = max(-1.0, value - below), min(1.0, value + above)
    return Difference(float(value), float(lo), float(hi), float(p))


def _patients_of_each_class(positive, patients, groups):
    """Patients with a positive slide, and with a negative one, in each group [g]."""
    each = [
        [len(np.unique(patients[at][of[at]])) for of in (positive, ~positive)]
        for at in parts(groups, len(positive))
    ]
    return np.array(each).T


def newcombe(
    area: float,
    positives: int | np.ndarray,
    negatives: int | np.ndarray,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Score interval of an AUC, never empty (Newcombe, 2006, method 5).

    The values theta with |area - theta| <= z sd(theta), sd after Hanley and McNeil
    (1982), evaluated at theta and not at `area`, where it may be zero.

    Args:
        area: the AUC.
        positives, negatives: how many; of each group [g] where pairs count within
            groups only.
        level: of confidence.
    """
    pairs = np.multiply(positives, negatives)
    more = np.sum(pairs * (np.add(positives, negatives) / 2 - 1)) / pairs.sum()
    z = _z(level)

    def beyond(theta):
        spread = 1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        variance = theta * (1 - theta) * spread / pairs.sum()
        return (area - theta) ** 2 - z**2 * variance

    # Beyond is positive at 0 and 1 and negative at `area`, unless `area` is the end.
    tiny = 1e-12
    lo = optimize.brentq(beyond, tiny, min(area, 1 - tiny)) if area > tiny else 0.0
    hi = optimize.brentq(beyond, max(area, tiny), 1 - tiny) if area < 1 - tiny else 1.0
    return float(lo), float(hi)


def wilson(share: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a proportion out of n, never empty (Wilson, 1927)."""
    z = _z(level)
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    # At 0 and 1 the end is the share itself, but for rounding.
    return float(min(share, middle - half)), float(max(share, middle + half))
