"""Paired comparison of runs on the test slides that they share, by patients."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from wsi_jax.evals import metrics
from wsi_jax.evals.bootstrap import REPLICATES, bootstrap
from wsi_jax.evals.intervals import Difference, class_patients, delong_difference
from wsi_jax.evals.summary import FEW, MAY_NOT_COVER
from wsi_jax.files import AnyPath
from wsi_jax.run.run_folder import RunError, read_csv

PREDICTIONS = "predictions.csv"


class Tested(NamedTuple):
    """The predictions of a run's test slides.

    Attributes:
        run: its folder.
        classes: names of the classes.
        lines: line of predictions.csv of each slide.
    """

    run: AnyPath
    classes: tuple[str, ...]
    lines: dict[str, dict[str, str]]


def read_tested(run: AnyPath) -> Tested:
    """The test slides of a run, or of an external validation.

    Raises:
        RunError: the folder has no predictions with labels.
    """
    path = run / PREDICTIONS
    if not path.is_file():
        raise RunError(
            f"{run} has no {PREDICTIONS}; name a folder of `wsi-jax train` whose run "
            "has ended, or of `wsi-jax evaluate`"
        )
    lines = read_csv(path)
    if not lines or not {"label", "patient_id", "prediction"} <= lines[0].keys():
        raise RunError(
            f"{path} has no labels to compare by; `wsi-jax evaluate` has them from a "
            "manifest"
        )
    classes = tuple(name[2:] for name in lines[0] if name.startswith("p_"))
    return Tested(run, classes, {line["slide_id"]: line for line in lines})


def check_same(one: Tested, other: Tested) -> list[str]:
    """Slides that two runs both have tested, sorted.

    Raises:
        RunError: there are none; or labels, patients, classes or folds disagree.
    """
    pair = f"{one.run} and {other.run}"
    if set(one.classes) != set(other.classes):
        have = " and ".join(", ".join(run.classes) for run in (one, other))
        raise RunError(f"{pair} have different classes: {have}")
    shared = sorted(one.lines.keys() & other.lines.keys())
    if not shared:
        raise RunError(f"{pair} share no test slide; train both on the same split")
    for column, word in {
        "label": "label",
        "patient_id": "patient",
        "fold": "fold",
    }.items():
        for name in shared:
            values = [run.lines[name].get(column, "") for run in (one, other)]
            if values[0] != values[1]:
                values = " and ".join(value or "none" for value in values)
                raise RunError(
                    f"{pair} disagree about slide {name}: its {word} is {values}; "
                    "they were not tested alike"
                )
    return shared


def compare_runs(runs: Sequence[AnyPath]) -> str:
    """Differences of the first run to each other one, as text.

    Raises:
        RunError: as `read_tested` and `check_same`, or there is only one run.
    """
    if len(runs) < 2:
        raise RunError("one run has nothing to be compared with; name two or more")
    first, *others = map(read_tested, runs)
    return "\n\n".join("\n".join(_compared(first, other)) for other in others)


def _compared(one: Tested, other: Tested) -> Iterable[str]:
    shared = check_same(one, other)
    lines = [one.lines[name] for name in shared]
    classes = one.classes
    labels = np.array([classes.index(line["label"]) for line in lines])
    patients = np.array([line["patient_id"] for line in lines])
    folds = [line.get("fold", "") for line in lines]
    groups = folds if any(folds) else None
    p, called = [], []
    for run in (one, other):
        own = [run.lines[name] for name in shared]
        p.append(np.array([[float(line[f"p_{c}"]) for c in classes] for line in own]))
        called.append(np.array([classes.index(line["prediction"]) for line in own]))
    yield f"{one.run} less {other.run}"
    yield f"  {len(shared)} test slides of {len(np.unique(patients))} patients"
    for run in (one, other):
        if left := len(run.lines) - len(shared):
            yield f"  {left} slides only in {run.run} are left out"
    yield f"  {'':<18} {'first':>6} {'second':>6}  difference (95 % interval)"
    values = [area(labels, one, None, groups) for one in p]
    yield _line("AUC", values, auc_difference(labels, p, patients, groups))
    values = [balanced_accuracy(labels, one, len(classes)) for one in called]
    between = lambda w: np.subtract(
        *(balanced_accuracy(labels, one, len(classes), w) for one in called)
    )
    gap = resampled(between, labels, patients)
    yield _line("balanced accuracy", values, gap)
    yield "  intervals count patients, not slides"
    counts = class_patients(labels, len(classes), patients)
    few = [f"{classes[k]} {n}" for k, n in enumerate(counts) if n < FEW]
    if few:
        yield f"  note: patients: {', '.join(few)}; {MAY_NOT_COVER}"


def _line(name: str, values: Sequence[float], gap: Difference) -> str:
    ends = f"({gap.lo:+.3f} to {gap.hi:+.3f})"
    p = "" if np.isnan(gap.p) else f", p = {gap.p:.2g}"
    return (
        f"  {name:<18} {values[0]:>6.3f} {values[1]:>6.3f}  {gap.value:+.3f} {ends}{p}"
    )


def area(labels, p, weights=None, groups=None):
    """AUC, of more than two classes the mean of each against the rest."""
    each = [
        metrics.auc(labels == k, p[:, k], weights, groups)
        for k in metrics.ranked_classes(p.shape[1])
    ]
    return np.mean(each, 0)


def auc_difference(
    labels: np.ndarray, p: Sequence[np.ndarray], patients: np.ndarray, groups
) -> Difference:
    """By DeLong's variance of two classes, by the bootstrap of more."""
    if p[0].shape[1] == 2:
        scores = (one[:, 1] for one in p)
        return delong_difference(labels == 1, *scores, patients, groups=groups)
    between = lambda w: np.subtract(*(area(labels, one, w, groups) for one in p))
    return resampled(between, labels, patients)


def balanced_accuracy(labels, called, c, weights=None):
    """Mean recall of the classes; `weights` [... n] as in `metrics`."""
    weights = metrics.weigh(weights, len(labels))
    recall = [
        metrics.divide(
            (weights * ((labels == k) & (called == k))).sum(-1),
            (weights * (labels == k)).sum(-1),
        )
        for k in range(c)
    ]
    return np.mean(recall, 0)


def resampled(between, labels: np.ndarray, patients: np.ndarray) -> Difference:
    """A difference with its bootstrap interval, without a p.

    Args:
        between: weights [... n] or None -> difference [...].
        labels, patients: of each slide [n].
    """
    draws = lambda weights: {"gap": between(weights)}
    lo, hi = bootstrap(draws, patients, labels, seed=0, replicates=REPLICATES)["gap"]
    return Difference(float(between(None)), float(lo), float(hi), np.nan)
