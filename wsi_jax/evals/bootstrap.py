"""Intervals of any metric: patients drawn again and again, two thousand at a time."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from wsi_jax.evals.intervals import LEVEL, one_each
from wsi_jax.evals.metrics import patient_labels, roc_points

REPLICATES = 2000


def bootstrap(
    statistic: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    patients: Sequence[str] | np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
    replicates: int,
) -> dict[str, tuple[np.ndarray | float, np.ndarray | float]]:
    """Percentile intervals of any statistic, resampling patients within each class.

    A patient is drawn with all slides, from the patients of the same class (the highest
    label of the patient's slides), so that no class vanishes. `statistic` makes of
    weights [r n] named values, each [r ...]; of each name (lo, hi) is given, NaN where
    5 % of the replicates or more are NaN.
    """
    _, index, stratum = patient_labels(labels, one_each(patients, len(labels)))
    rng = np.random.default_rng(seed)
    # Small enough for the cache and large enough that Python's share is nothing.
    at_once = max(1, 2**20 // len(index))
    parts = []
    for start in range(0, replicates, at_once):
        rows = min(at_once, replicates - start)
        counts = np.empty((rows, len(stratum)))
        for k in np.unique(stratum):
            (those,) = np.nonzero(stratum == k)
            even = np.full(len(those), 1 / len(those))
            counts[:, those] = rng.multinomial(len(those), even, rows)
        parts.append(statistic(counts[:, index]))
    return {
        name: _percentiles(np.concatenate([part[name] for part in parts]))
        for name in parts[0]
    }


def _percentiles(draws: np.ndarray) -> tuple:
    missing, tails = np.isnan(draws), ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    enough = missing.mean(0) < 0.05
    ends = np.nanquantile(np.where(missing & ~enough, 0, draws), tails, axis=0)
    return tuple(np.where(enough, end, np.nan)[()] for end in ends)


def roc_band(
    positive: np.ndarray,
    scores: np.ndarray,
    patients: Sequence[str] | np.ndarray,
    grid: np.ndarray,
    *,
    seed: int,
    replicates: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise interval of the true positive rate at each false positive rate [g].

    Both classes are present in `positive`. lo [g] and hi [g] have no width where the
    classes separate perfectly: the interval of the AUC tells how little that says.
    """
    positive = np.asarray(positive, bool)

    def rates(weights):
        pairs = zip(*roc_points(positive, scores, weights), strict=True)
        return {"tpr": np.array([np.interp(grid, *pair) for pair in pairs])}

    labels, draws = positive.astype(np.int64), {"seed": seed, "replicates": replicates}
    return bootstrap(rates, patients, labels, **draws)["tpr"]
