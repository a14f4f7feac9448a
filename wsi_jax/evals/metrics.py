"""Metrics of predictions against labels, of slides and of patients.

A metric that is not defined is NaN, never a guess: AUC, average precision, balanced
accuracy and macro F1 when a class has no slide, a class's precision when nothing was
called that class. With two classes the second, index 1, is the positive one.

A bootstrap replicate is a weighting of the slides. So a metric that takes `weights`
`[... n]` returns `[...]`, and two thousand replicates are one call. Without weights
each slide counts once.
"""

from collections.abc import Sequence

import numpy as np

Groups = Sequence | np.ndarray | None

# Probabilities come out of a float32 softmax: nothing smaller differs from zero.
TINY = float(np.finfo(np.float32).eps)


def check(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Labels as int64 [n] and probabilities as float64 [n c], checked.

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

    ValueError: two classes without a threshold, or more classes with one.
    """
    if (probabilities.shape[1] == 2) != (threshold is not None):
        raise ValueError(
            f"{probabilities.shape[1]} classes with threshold={threshold}: two classes "
            "need the one that `choose_threshold` chose on validation, more need None"
        )
    if threshold is None:
        return probabilities.argmax(-1)
    return (probabilities[:, 1] >= threshold).astype(np.int64)


def weigh(weights: np.ndarray | None, n: int) -> np.ndarray:
    """The weights [... n], one each when there are none."""
    return np.ones(n) if weights is None else np.asarray(weights, np.float64)


def divide(
    numerator: np.ndarray | float, denominator: np.ndarray | float
) -> np.ndarray | float:
    """Divides; NaN where the denominator is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)[()]


def _weight_by_score(
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


def group_indices(groups: Groups, n: int) -> list[np.ndarray | slice]:
    """Index of each group's slides among n; one group of all when there are none."""
    if groups is None:
        return [slice(None)]
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} slides")
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    return [np.flatnonzero(index == k) for k in range(index.max() + 1)]


def auc(
    positive: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray | None = None,
    groups: Groups = None,
) -> np.ndarray | float:
    """Area under the ROC curve: P(a positive scores higher), a tie counting one half.

    With groups [n], only pairs of a positive and a negative of one group count: scores
    of different models (those of different folds) have no common scale. It is the
    groups' AUCs averaged by their pairs. `positive` is bool [n], `scores` [n].
    """
    positive, scores = np.asarray(positive, bool), np.asarray(scores, np.float64)
    weights = weigh(weights, len(scores))
    concordant, pairs = 0.0, 0.0
    for at in group_indices(groups, len(scores)):
        up, right = _weight_by_score(positive[at], scores[at], weights[..., at])
        beaten = right.sum(-1, keepdims=True) - right.cumsum(-1) + right / 2
        concordant = concordant + (up * beaten).sum(-1)
        pairs = pairs + up.sum(-1) * right.sum(-1)
    return divide(concordant, pairs)


def average_precision(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray | float:
    """Precision averaged over the steps of recall, without interpolation."""
    positive, scores = np.asarray(positive, bool), np.asarray(scores, np.float64)
    up, right = _weight_by_score(positive, scores, weigh(weights, len(scores)))
    called = (up + right).cumsum(-1)
    precision = up.cumsum(-1) / np.where(called > 0, called, 1)
    return divide((up * precision).sum(-1), up.sum(-1))


def mean_average_precision(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray | float:
    """Average precision of the positive class; of more than two classes their mean."""
    one = lambda k: average_precision(labels == k, probabilities[:, k], weights)
    return np.mean([one(k) for k in ranked_classes(probabilities.shape[1])], 0)


def roc_points(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rate as the threshold falls, from (0, 0) to (1, 1).

    Two arrays [... g + 1] for g distinct scores.
    """
    positive, scores = np.asarray(positive, bool), np.asarray(scores, np.float64)
    up, right = _weight_by_score(positive, scores, weigh(weights, len(scores)))
    rates = [divide(x.cumsum(-1), x.sum(-1, keepdims=True)) for x in (right, up)]
    zero = np.zeros_like(rates[0][..., :1])
    return tuple(np.concatenate([zero, rate], -1) for rate in rates)


def log_loss(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray | float:
    """Mean -log p(label), in nats; p is clipped at float32's epsilon."""
    p = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
    weights = weigh(weights, len(p))
    return divide(weights @ -np.log(np.maximum(p, TINY)), weights.sum(-1))


def ranked_classes(c: int) -> Sequence[int]:
    """Classes whose ranking is measured: the positive one of two, all of more."""
    return [1] if c == 2 else range(c)


def confusion(labels: np.ndarray, predicted: np.ndarray, c: int) -> np.ndarray:
    """Slides [c c]: row the label, column the prediction."""
    return np.bincount(labels * c + predicted, minlength=c * c).reshape(c, c)


def class_rates(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Recall, precision and F1 of each class [c] from a confusion matrix [c c]."""
    hit, labelled, called = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    # A class without slides has no recall, so it has no F1 either: NaN, not zero.
    f1 = np.where(labelled > 0, divide(2 * hit, labelled + called), np.nan)
    recall, precision = divide(hit, labelled), divide(hit, called)
    return {"recall": recall, "precision": precision, "f1": f1}


def confidence(
    labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What was claimed [n] and whether it came true [n], for calibration.

    Two classes: the positive's probability, and whether the slide is positive. More:
    the largest probability, and whether that class is the label (Guo et al., 2017).
    """
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], labels == 1
    return probabilities.max(-1), probabilities.argmax(-1) == labels


def calibration(
    claimed: np.ndarray, came_true: np.ndarray, bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean claim, share that came true, and count, of each bin that is not empty."""
    index = np.minimum((claimed * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    full = count > 0
    mean = [np.bincount(index, v, bins)[full] for v in (claimed, came_true)]
    return mean[0] / count[full], mean[1] / count[full], count[full]


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error: |claimed - came true|, over bins of equal width."""
    claimed, came_true, count = calibration(*confidence(labels, probabilities))
    return float(count @ np.abs(claimed - came_true) / len(labels))


def slide_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float | np.ndarray | None,
) -> dict[str, float]:
    """The headline metrics; arguments as `check` returns them.

    AUC, average precision and F1 are the positive class's with two classes, and the
    mean over the classes, each against the rest, with more. Sensitivity and
    specificity exist with two classes only.
    """
    c = probabilities.shape[1]
    matrix = confusion(labels, predict(probabilities, threshold), c)
    rates = class_rates(matrix)
    areas = [auc(labels == k, probabilities[:, k]) for k in ranked_classes(c)]
    metrics = {
        "auc": np.mean(areas),
        "balanced_accuracy": rates["recall"].mean(),
        "f1": rates["f1"][1] if c == 2 else rates["f1"].mean(),
        "accuracy": np.diag(matrix).sum() / matrix.sum(),
        "average_precision": mean_average_precision(labels, probabilities),
        "log_loss": log_loss(labels, probabilities),
        "calibration_error": calibration_error(labels, probabilities),
    }
    if c == 2:
        metrics["sensitivity"] = rates["recall"][1]
        metrics["specificity"] = rates["recall"][0]
    return {name: float(value) for name, value in metrics.items()}


def by_patient(
    labels: np.ndarray, probabilities: np.ndarray, patients: Sequence[str] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One prediction a patient: the mean probability of the patient's slides.

    The patient's label is the highest class index among the slides: with classes in
    order of severity, a patient is as ill as the worst slide (one metastatic node makes
    the patient positive). Labels [p], probabilities [p c] and patients [p], sorted.
    """
    ids, index, highest = patient_labels(labels, patients)
    total = np.stack([np.bincount(index, p) for p in probabilities.T], -1)
    return highest, total / np.bincount(index)[:, None], ids


def patient_labels(
    labels: np.ndarray, patients: Sequence[str] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patients [p], the patient of each slide [n], and patients' highest labels [p]."""
    ids, index = np.unique(np.asarray(patients), return_inverse=True)
    highest = np.zeros(len(ids), np.int64)
    np.maximum.at(highest, index, labels)
    return ids, index, highest
