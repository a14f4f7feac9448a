"""All numbers of one split in one flat dict, each headline number with its interval."""

from collections.abc import Sequence

import numpy as np

from wsi_jax.evals import metrics
from wsi_jax.evals.bootstrap import bootstrap
from wsi_jax.evals.intervals import LEVEL, delong, one_each, wilson

REPLICATES = 2000
# Whose ends, 0 and 1, no resampling can see beyond.
SHARES = (
    "auc",
    "balanced_accuracy",
    "f1",
    "accuracy",
    "average_precision",
    "sensitivity",
    "specificity",
)


def summarise(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    *,
    seed: int,
    patients: Sequence[str] | np.ndarray | None = None,
    sites: Sequence[str] | np.ndarray | None = None,
    threshold: float | np.ndarray | None = None,
    groups: Sequence | np.ndarray | None = None,
    replicates: int = REPLICATES,
    level: float = LEVEL,
) -> dict[str, int | float]:
    """Evaluates one split.

    Args:
        labels: class indices [n].
        probabilities: of each class [n c].
        classes: names; of two, the second is the positive one.
        seed: of the bootstrap.
        patients: of each slide; None: each slide is a patient.
        sites: of each slide; "" where unknown.
        threshold: for two classes, from `choose_threshold` on validation, one or of
            each slide [n]; else None.
        groups: of each slide, which model judged it: its fold in cross-validation. Only
            pairs of slides of one group count for the AUC, as models have no common
            scale. All else is of all slides together, average precision too: in small
            groups that is biased far more than different scales bias the pooled one.
        replicates: of the bootstrap.
        level: of confidence.

    Returns:
        Flat, NaN where undefined. With `<m>` each of `metrics.slide_metrics`:
        `n`, `n_patients`, `threshold` (two classes), `<m>`, `<m>_lo`, `<m>_hi` (but no
        interval of `calibration_error`, which resampling biases upwards);
        `auc_pooled`, of all pairs, when there are groups;
        `patient.n` and the same of patients (mean probability, highest label), when a
        patient has several slides;
        `per_class.<class>.` `n`, `recall`, `precision`, `f1`, `average_precision`,
        `auc`, `auc_lo`, `auc_hi` (against the rest);
        `site.<site>.` `n`, `<m>`, `<m>_lo`, `<m>_hi`, when there are sites;
        `confusion.<label>.<verdict>` counts.

    Raises:
        ValueError: as `metrics.check` and `metrics.predict`, or a patient with several
            slides lies in several groups.
    """
    labels, probabilities = metrics.check(labels, probabilities, classes)
    each = one_each(patients, len(labels))
    how = {"seed": seed, "replicates": replicates, "level": level}
    groups = None if groups is None else np.asarray(groups)

    def measured(labels, probabilities, patients, at=slice(None)):
        cut = threshold[at] if np.ndim(threshold) else threshold
        within = None if groups is None else groups[at]
        return _with_intervals(labels, probabilities, cut, patients, within, **how)

    summary = {"n": len(labels), "n_patients": len(np.unique(each))}
    if threshold is not None and not np.ndim(threshold):
        summary["threshold"] = threshold
    summary |= measured(labels, probabilities, each)
    if summary["n_patients"] < len(labels):
        pooled = metrics.by_patient(labels, probabilities, each)
        first = _first_slides(each, groups)
        summary |= _under("patient.", {"n": len(pooled[0])} | measured(*pooled, first))
    predicted = metrics.predict(probabilities, threshold)
    matrix = metrics.confusion(labels, predicted, len(classes))
    rates = metrics.class_rates(matrix)
    for k, name in enumerate(classes):
        ranked = labels == k, probabilities[:, k]
        summary |= _under(
            f"per_class.{name}.",
            {"n": int(matrix[k].sum())}
            | {rate: float(values[k]) for rate, values in rates.items()}
            | {"average_precision": float(metrics.average_precision(*ranked))}
            | _auc(delong(*ranked, each, level, groups)),
        )
    for site, at in _places(sites, len(labels)):
        one = measured(labels[at], probabilities[at], each[at], at)
        summary |= _under(f"site.{site}.", {"n": int(at.sum())} | one)
    return summary | {
        f"confusion.{label}.{verdict}": int(matrix[i, j])
        for i, label in enumerate(classes)
        for j, verdict in enumerate(classes)
    }


def _first_slides(patients, groups):
    """Index of each patient's first slide, patients sorted; of one group each."""
    ids, first, index = np.unique(patients, return_index=True, return_inverse=True)
    if groups is not None and (groups != groups[first][index]).any():
        bad = ids[index[np.argmax(groups != groups[first][index])]]
        raise ValueError(f"slides of patient {str(bad)!r} lie in several folds")
    return first


def _with_intervals(
    labels, probabilities, threshold, patients, groups, *, level, **how
):
    c = probabilities.shape[1]

    def statistic(weights):
        found = metrics.slide_metrics(labels, probabilities, threshold, weights)
        if groups is None:
            return found
        each = [
            metrics.auc(labels == k, probabilities[:, k], weights, groups)
            for k in ([1] if c == 2 else range(c))
        ]
        return found | {"auc_pooled": found["auc"], "auc": np.mean(each, 0)}

    values = {k: float(v) for k, v in statistic(np.ones(len(labels))).items()}
    ends = bootstrap(statistic, patients, labels, level=level, **how)
    for name in ("calibration_error", "auc_pooled"):
        ends.pop(name, None)
    counts = np.bincount(metrics.by_patient(labels, probabilities, patients)[0])
    rarest = counts[counts > 0].min()
    relevant = dict.fromkeys(SHARES, rarest) | {"accuracy": counts.sum()}
    relevant |= {"sensitivity": counts[-1], "specificity": max(counts[0], 1)}
    found = dict(values)
    for name, (lo, hi) in ends.items():
        if name in SHARES and np.isclose(lo, hi, rtol=0, atol=1e-9):
            # All of a class right, or all wrong: resampling repeats it. Wilson knows
            # how few patients said so; the rarest class's where classes are averaged.
            lo, hi = wilson(values[name], int(relevant[name]), level)
        found |= {f"{name}_lo": float(lo), f"{name}_hi": float(hi)}
    if c == 2:
        positive = labels == 1
        found |= _auc(delong(positive, probabilities[:, 1], patients, level, groups))
    return found


def _auc(interval):
    return dict(zip(("auc", "auc_lo", "auc_hi"), map(float, interval), strict=True))


def _places(sites, n):
    if sites is None or not any(sites):
        return []
    sites = np.array([site or "unknown" for site in sites])
    return [(site, sites == site) for site in np.unique(sites)]


def _under(prefix, values):
    return {prefix + name: value for name, value in values.items()}
