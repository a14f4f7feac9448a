"""What depends on the order of the scores only: ROC, AUC, precision and recall.

A bootstrap replicate is a weighting of the slides. So every metric takes `weights`
`[... n]` and returns `[...]`, and two thousand replicates are one call. Without
weights each slide counts once and the answer is a number; NaN where it is not defined.
"""

from collections.abc import Sequence

import numpy as np


def weigh(weights: np.ndarray | None, n: int) -> np.ndarray:
    """The weights [... n], one each when there are none."""
    return np.ones(n) if weights is None else np.asarray(weights, np.float64)


def divide(
    numerator: np.ndarray | float, denominator: np.ndarray | float
) -> np.ndarray | float:
    """Divides; NaN where the denominator is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)[()]


def _tied(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives at each distinct score, falling: [... g]."""
    order = np.argsort(-scores, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    weights, positive = weights[..., order], positive[order]
    return (
        np.add.reduceat(weights * positive, first, axis=-1),
        np.add.reduceat(weights * ~positive, first, axis=-1),
    )


def auc(
    positive: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray | None = None,
    groups: Sequence | np.ndarray | None = None,
) -> np.ndarray | float:
    """Area under the ROC curve: P(a positive scores higher), a tie counting one half.

    With groups, only pairs of a positive and a negative of one group count: scores of
    different models (those of different folds) have no common scale. It is the groups'
    AUCs averaged by their pairs.

    Args:
        positive: bool [n].
        scores: [n]; any monotone scale, of each group its own.
        weights: [... n].
        groups: of each slide [n]; None: all slides are one group.

    Returns:
        [...]; NaN where no pair has weight.
    """
    positive, scores = np.asarray(positive, bool), np.asarray(scores, np.float64)
    weights = weigh(weights, len(scores))
    concordant, pairs = 0.0, 0.0
    for at in parts(groups, len(scores)):
        up, right = _tied(positive[at], scores[at], weights[..., at])
        beaten = right.sum(-1, keepdims=True) - right.cumsum(-1) + right / 2
        concordant = concordant + (up * beaten).sum(-1)
        pairs = pairs + up.sum(-1) * right.sum(-1)
    return divide(concordant, pairs)


def parts(groups: Sequence | np.ndarray | None, n: int) -> list[np.ndarray | slice]:
    """Index of each group's slides among n; one group of all when there are none."""
    if groups is None:
        return [slice(None)]
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} slides")
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    return [np.flatnonzero(index == k) for k in range(index.max() + 1)]


def average_precision(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray | float:
    """Precision averaged over the steps of recall; arguments as `auc`.

    The step-wise sum, without interpolation (which flatters). NaN without positives.
    """
    positive, scores = np.asarray(positive, bool), np.asarray(scores, np.float64)
    up, right = _tied(positive, scores, weigh(weights, len(scores)))
    called = (up + right).cumsum(-1)
    precision = up.cumsum(-1) / np.where(called > 0, called, 1)
    return divide((up * precision).sum(-1), up.sum(-1))


def roc_points(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate as the threshold falls, from (0, 0) to (1, 1).

    Returns:
        Two arrays [... g + 1] for g distinct scores; arguments as `auc`.
    """
    positive, scores = np.asarray(positive, bool), np.asarray(scores, np.float64)
    rates = []
    for at in reversed(_tied(positive, scores, weigh(weights, len(scores)))):
        rate = divide(at.cumsum(-1), at.sum(-1, keepdims=True))
        rates.append(np.concatenate([np.zeros_like(rate[..., :1]), rate], -1))
    return rates[0], rates[1]
