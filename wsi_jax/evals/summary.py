"""All numbers of one split in one flat dict, each headline number with its interval.

The keys, with `<m>` each of `metrics.slide_metrics`; NaN where undefined:

- `n`, `n_patients`, `threshold` (of two classes, where it is one number);
- `<m>`, `<m>_lo`, `<m>_hi`, but no interval of `calibration_error`, which few slides
  bias upwards. The ends are NaN where a metric rests on fewer than FEWEST patients:
  those of the rarest class; of its own class for sensitivity and specificity; all of
  them for accuracy and log loss;
- `interval_note`, text, when a class has fewer than FEW patients;
- `auc_pooled`, of all pairs of slides, when there are groups;
- `patient.n` and the same of patients (mean probability, highest label), when a patient
  has several slides;
- `per_class.<class>.` `n`, `recall`, `precision`, `f1`, `average_precision`, `auc`,
  `auc_lo`, `auc_hi`, of the class against the rest;
- `site.<site>.` `n`, `<m>`, `<m>_lo`, `<m>_hi`, when there are sites;
- `confusion.<label>.<prediction>`: counts.
"""

from collections.abc import Sequence

import numpy as np

from wsi_jax.evals import metrics
from wsi_jax.evals.confusion_intervals import confusion_intervals
from wsi_jax.evals.intervals import class_patients, delong, macro_auc, one_each
from wsi_jax.evals.jackknife import average_precision_interval, log_loss_interval
from wsi_jax.evals.metrics import Groups

FEW, FEWEST = 10, 5  # patients of a class: intervals that cover, and any at all
MAY_NOT_COVER = f"intervals of fewer than {FEW} may not cover"
NOTE = f"{MAY_NOT_COVER}, of fewer than {FEWEST} have none"


def summarise_split(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    *,
    patients: Sequence[str] | np.ndarray | None = None,
    sites: Sequence[str] | np.ndarray | None = None,
    threshold: float | np.ndarray | None = None,
    groups: Groups = None,
) -> dict[str, int | float | str]:
    """Evaluates one split: the numbers that this module's docstring lists.

    Args:
        labels, probabilities: class indices [n]; of each class [n c].
        classes: names; of two, the second is the positive one.
        patients: patient of each slide; None: each slide is a patient.
        sites: of each slide; "" where unknown.
        threshold: for two classes, one number or one of each slide [n]; else None.
        groups: the model that predicted each slide: its fold in cross-validation. Only
            pairs of one group count for the AUC, as models have no common scale.
            Everything else, average precision too, is of all slides.

    ValueError: as `metrics.check` and `metrics.predict`, or a patient with several
    slides lies in several groups.
    """
    labels, probabilities = metrics.check(labels, probabilities, classes)
    each = one_each(patients, len(labels))
    groups = groups if groups is None else np.asarray(groups)

    def measured(labels, probabilities, patients, at=slice(None)):
        cut = threshold[at] if np.ndim(threshold) else threshold
        within = None if groups is None else groups[at]
        return measure(labels, probabilities, classes, cut, patients, within)

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
    for k, name in enumerate(classes):
        own = {"n": int(matrix[k].sum())}
        own |= {m: float(v[k]) for m, v in metrics.class_rates(matrix).items()}
        positive, scores = labels == k, probabilities[:, k]
        own["average_precision"] = float(metrics.average_precision(positive, scores))
        fewest = class_patients(positive, 2, each).min()
        own |= _ends("auc", delong(positive, scores, each, groups), fewest)
        summary |= _under(f"per_class.{name}.", own)
    for site, at in _sites(sites):
        own = measured(labels[at], probabilities[at], each[at], at)
        summary |= _under(f"site.{site}.", {"n": int(at.sum())} | own)
    return summary | {
        f"confusion.{label}.{prediction}": int(matrix[i, j])
        for i, label in enumerate(classes)
        for j, prediction in enumerate(classes)
    }


def _first_slides(patients, groups):
    """Index of each patient's first slide, patients sorted; of one group each."""
    ids, first, index = np.unique(patients, return_index=True, return_inverse=True)
    if groups is not None and (groups != groups[first][index]).any():
        bad = ids[index[np.argmax(groups != groups[first][index])]]
        raise ValueError(f"slides of patient {str(bad)!r} lie in several folds")
    return first


def measure(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    threshold: float | np.ndarray | None,
    patients: np.ndarray,
    groups: Groups = None,
) -> dict[str, float | str]:
    """Metrics of slides with intervals; arguments and keys as `summarise_split`."""
    c = len(classes)
    values = metrics.slide_metrics(labels, probabilities, threshold)
    if c == 2:
        area = delong(labels == 1, probabilities[:, 1], patients, groups)
    else:
        area = macro_auc(labels, probabilities, patients, groups)
    if groups is not None:
        values["auc_pooled"] = values["auc"]
    predicted = metrics.predict(probabilities, threshold)
    intervals = {
        "auc": area,
        **confusion_intervals(labels, predicted, c, patients),
        "average_precision": average_precision_interval(
            labels, probabilities, patients
        ),
        "log_loss": log_loss_interval(labels, probabilities, patients),
    }
    counts = class_patients(labels, c, patients)
    everyone = len(np.unique(patients))
    fewest = dict.fromkeys(intervals, counts.min())
    fewest |= {"accuracy": everyone, "log_loss": everyone}
    fewest |= {"sensitivity": counts[-1], "specificity": counts[0]}
    for name, interval in intervals.items():
        values |= _ends(name, interval, fewest[name])
    few = [f"{classes[k]} {n}" for k, n in enumerate(counts) if n < FEW]
    if few:
        values["interval_note"] = f"patients: {', '.join(few)}; {NOTE}"
    return values


def _ends(name, interval, patients):
    """A value and its interval, without ends where it rests on too few patients."""
    value, lo, hi = map(float, interval)
    if patients < FEWEST:
        lo = hi = np.nan
    return {name: value, f"{name}_lo": lo, f"{name}_hi": hi}


def _sites(sites):
    if sites is None or not any(sites):
        return []
    sites = np.array([site or "unknown" for site in sites])
    return [(site, sites == site) for site in np.unique(sites)]


def _under(prefix, values):
    return {prefix + name: value for name, value in values.items()}
