"""Verdicts against labels: AUC, balanced accuracy, F1, log loss; slides and patients.

Weights are as in `ranking`: `[... n]` in, `[...]` out. A metric that is not defined is
NaN, never a guess: AUC, average precision, balanced accuracy and macro F1 when a class
has no slide, a class's precision when nothing was called that class. With two classes
the second, index 1, is the positive one.
"""

from collections.abc import Sequence

import numpy as np

from wsi_jax.evals.calibration import calibration_error
from wsi_jax.evals.ranking import auc, average_precision, divide, roc_points, weigh

# Probabilities come out of a float32 softmax: nothing smaller can be told from zero.
TINY = float(np.finfo(np.float32).eps)


def check(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels int64 [n] and probabilities float64 [n c], or says what is wrong.

    Args:
        labels: class indices [n].
        probabilities: of each class [n c]; rows sum to 1.
        classes: c names, in the order of the columns.

    Raises:
        ValueError: no slides, shapes that disagree, a label that is no class, a value
            that is not finite, or rows that do not sum to 1 (logits, perhaps).
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    expected = (len(labels), len(classes))
    if len(labels) == 0:
        raise ValueError("no slides to evaluate: is the split empty?")
    if len(classes) < 2:
        raise ValueError(f"two classes or more are needed, not {tuple(classes)}")
    if probabilities.shape != expected:
        raise ValueError(
            f"probabilities are {probabilities.shape}, but {len(labels)} labels and "
            f"{len(classes)} classes ask for {expected}"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= expected[1]:
        raise ValueError(
            f"labels must be indices 0..{expected[1] - 1} of {tuple(classes)}, "
            f"not {np.unique(labels)[:10].tolist()}"
        )
    bad = np.flatnonzero(~np.isfinite(probabilities).all(-1))
    if bad.size:
        raise ValueError(
            f"probabilities of {bad.size} of {len(labels)} slides are not finite (rows "
            f"{bad[:5].tolist()}): leave these slides out and report them as refused"
        )
    if probabilities.min() < -1e-3 or np.abs(probabilities.sum(-1) - 1).max() > 1e-3:
        raise ValueError(
            "rows of probabilities do not sum to 1: pass softmax(logits), not logits"
        )
    return labels.astype(np.int64), np.clip(probabilities, 0, 1)


def predict(
    probabilities: np.ndarray, threshold: float | np.ndarray | None
) -> np.ndarray:
    """Class indices [n]: two classes by `p[:, 1] >= threshold`, more by the largest.

    The threshold is one number, or one of each slide [n].

    Raises:
        ValueError: two classes without a threshold, or more classes with one.
    """
    if (probabilities.shape[1] == 2) != (threshold is not None):
        raise ValueError(
            f"{probabilities.shape[1]} classes with threshold={threshold}: two classes "
            "need the one that `choose_threshold` found on validation, more need None"
        )
    if threshold is None:
        return probabilities.argmax(-1)
    return (probabilities[:, 1] >= threshold).astype(np.int64)


def confusion(
    labels: np.ndarray, predicted: np.ndarray, c: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Weight of slides [... c c]: row the label, column the verdict."""
    cell = np.eye(c * c)[np.asarray(labels) * c + np.asarray(predicted)]
    counts = weigh(weights, len(cell)) @ cell
    return counts.reshape(*counts.shape[:-1], c, c)


def class_rates(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Recall, precision and F1 of each class [... c] from a confusion [... c c]."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    there, called = matrix.sum(-1), matrix.sum(-2)
    # A class without slides has no recall, so it has no F1 either: NaN, not zero.
    f1 = np.where(there > 0, divide(2 * hit, there + called), np.nan)
    recall, precision = divide(hit, there), divide(hit, called)
    return {"recall": recall, "precision": precision, "f1": f1}


def log_loss(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray | float:
    """Mean -log p(label), in nats; p is clipped at float32's epsilon."""
    p = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
    weights = weigh(weights, len(p))
    return divide(weights @ -np.log(np.maximum(p, TINY)), weights.sum(-1))


def mean_average_precision(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray | float:
    """Average precision of the positive class; of more than two classes their mean."""
    c = probabilities.shape[1]
    ranked = [1] if c == 2 else range(c)
    each = [
        average_precision(labels == k, probabilities[:, k], weights) for k in ranked
    ]
    return np.mean(each, 0)


def slide_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float | np.ndarray | None,
    weights: np.ndarray | None = None,
) -> dict[str, np.ndarray | float]:
    """The headline metrics [...]; arguments as `check` returns them.

    AUC, average precision and F1 are the positive class's with two classes, and the
    mean over the classes, each against the rest, with more. Sensitivity and
    specificity exist with two classes only.
    """
    c = probabilities.shape[1]
    matrix = confusion(labels, predict(probabilities, threshold), c, weights)
    rates = class_rates(matrix)
    ranked = [1] if c == 2 else range(c)
    against = [(labels == k, probabilities[:, k], weights) for k in ranked]
    metrics = {
        "auc": np.mean([auc(*one) for one in against], 0),
        "balanced_accuracy": rates["recall"].mean(-1),
        "f1": rates["f1"].take(1, -1) if c == 2 else rates["f1"].mean(-1),
        "accuracy": divide(
            np.diagonal(matrix, axis1=-2, axis2=-1).sum(-1), matrix.sum((-2, -1))
        ),
        "average_precision": mean_average_precision(labels, probabilities, weights),
        "log_loss": log_loss(labels, probabilities, weights),
        "calibration_error": calibration_error(labels, probabilities, weights),
    }
    if c == 2:
        metrics["sensitivity"] = rates["recall"].take(1, -1)
        metrics["specificity"] = rates["recall"].take(0, -1)
    return metrics


def choose_threshold(labels: np.ndarray, p: np.ndarray) -> float:
    """The threshold of best balanced accuracy (Youden's J). For validation slides only.

    Balanced accuracy is constant between two neighbouring probabilities: the middle of
    the best plateau is taken, of the widest when several are best, so that the verdict
    does not hang on one slide's third decimal.

    Args:
        labels: 0 or 1 [n].
        p: probability of class 1 [n].

    Returns:
        t, for verdicts `p >= t`.

    Raises:
        ValueError: one of the classes has no slide.
    """
    labels, p = np.asarray(labels), np.asarray(p, np.float64)
    for k in (0, 1):
        if not (labels == k).any():
            raise ValueError(
                f"no slide of class {k} among the {len(labels)} validation slides: "
                "a threshold cannot be chosen; mend the split"
            )
    if not np.isfinite(p).all():
        raise ValueError(f"{(~np.isfinite(p)).sum()} probabilities are not finite")
    right, up = roc_points(labels == 1, p)
    # roc_points falls from "nothing is positive"; plateau k is (lower[k], upper[k]].
    falling = -np.unique(-p)
    upper, lower = np.r_[1.0, falling], np.r_[falling, 0.0]
    best = np.isclose(up - right, (up - right).max(), rtol=0, atol=1e-12)
    edges = np.flatnonzero(np.diff(np.r_[False, best, False]))
    first, last = edges[::2], edges[1::2] - 1
    widest = np.argmax(upper[first] - lower[last])
    low, high = lower[last[widest]], upper[first[widest]]
    middle = (low + high) / 2
    return float(middle if middle > low else high)


def by_patient(
    labels: np.ndarray, probabilities: np.ndarray, patients: Sequence[str] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One verdict a patient: the mean probability of the patient's slides.

    The patient's label is the highest class index among the slides: with classes in
    order of severity, a patient is as ill as the worst slide (one metastatic node makes
    the patient positive).

    Returns:
        Labels [p], probabilities [p c] and patients [p], sorted.
    """
    ids, index = np.unique(np.asarray(patients), return_inverse=True)
    highest = np.zeros(len(ids), np.int64)
    np.maximum.at(highest, index, labels)
    total = np.stack([np.bincount(index, p) for p in probabilities.T], -1)
    return highest, total / np.bincount(index)[:, None], ids
