"""Metrics are scikit-learn's, a weight is a repetition, a threshold is the best one."""

import numpy as np
import pytest
from sklearn import metrics as sklearn

from wsi_jax.evals import metrics
from wsi_jax.evals.threshold import choose_threshold


def draw(seed, n=60, c=2, digits=1):
    """Labels and rounded probabilities, so that scores tie."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(c), rng.integers(0, c, n - c)]
    logits = np.round(rng.normal(size=(n, c)) + 1.2 * np.eye(c)[labels], digits)
    p = np.exp(logits)
    return labels, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("c", [2, 3])
def test_metrics_are_those_of_scikit_learn(c):
    labels, p = draw(0, c=c)
    threshold = 0.4 if c == 2 else None
    ours = metrics.slide_metrics(labels, p, threshold)
    predicted = metrics.predict(p, threshold)
    scores, truth = (p[:, 1], labels) if c == 2 else (p, np.eye(c)[labels])
    f1 = sklearn.f1_score(labels, predicted, average="binary" if c == 2 else "macro")
    theirs = {
        "auc": sklearn.roc_auc_score(labels, scores, multi_class="ovr"),
        "balanced_accuracy": sklearn.balanced_accuracy_score(labels, predicted),
        "f1": f1,
        "accuracy": sklearn.accuracy_score(labels, predicted),
        "average_precision": sklearn.average_precision_score(truth, scores),
        "log_loss": sklearn.log_loss(labels, p),
    }
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-12, err_msg=name)
    matrix = metrics.confusion(labels, predicted, c)
    np.testing.assert_array_equal(matrix, sklearn.confusion_matrix(labels, predicted))
    parts = sklearn.precision_recall_fscore_support(labels, predicted)
    for name, values in zip(("precision", "recall", "f1"), parts, strict=False):
        np.testing.assert_allclose(metrics.class_rates(matrix)[name], values)
    curve = sklearn.roc_curve(labels == 1, p[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(metrics.roc_points(labels == 1, p[:, 1]), curve[:2])


@pytest.mark.parametrize("c", [2, 3])
def test_a_weight_is_a_repetition(c):
    labels, p = draw(1, c=c)
    weighted = (
        lambda labels, p, w=None: metrics.auc(labels == 1, p[:, 1], w),
        metrics.mean_average_precision,
        metrics.log_loss,
    )
    weights = np.random.default_rng(2).integers(0, 4, (3, len(labels)))
    for metric in weighted:
        together = metric(labels, p, weights)
        for value, times in zip(together, weights, strict=True):
            alone = metric(np.repeat(labels, times), np.repeat(p, times, 0))
            np.testing.assert_allclose(value, alone, rtol=1e-12)


def test_what_is_not_defined_is_nan():
    labels, p = np.zeros(4, int), np.full((4, 2), 0.5)
    values = metrics.slide_metrics(labels, p, 0.5)
    for name in ("auc", "average_precision", "balanced_accuracy", "f1", "sensitivity"):
        assert np.isnan(values[name]), name
    assert values["specificity"] == 0
    assert values["log_loss"] == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("labels", "p", "message"),
    [
        ([], np.zeros((0, 2)), "no slides"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], r"rows \[1\]"),
        ([0, 1], [[2.0, -1.0], [0.5, 0.5]], "softmax"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "indices 0..1"),
        ([0, 1], [[0.2, 0.3, 0.5], [1, 0, 0]], "2 classes"),
    ],
)
def test_bad_input_is_named(labels, p, message):
    with pytest.raises(ValueError, match=message):
        metrics.check(np.array(labels, int), np.array(p), ("normal", "tumor"))
    # Two classes need a threshold and more have none.
    for c, threshold, other in ((2, None, "choose_threshold"), (3, 0.5, "3 classes")):
        with pytest.raises(ValueError, match=other):
            metrics.predict(np.full((2, c), 1 / c), threshold)


def test_no_threshold_is_better_than_the_chosen_one():
    for seed in range(10):
        labels, p = draw(seed, n=25)
        p = p[:, 1]
        ill, well = p[labels == 1], p[labels == 0]
        cuts = np.r_[choose_threshold(labels, p), p, 0, 1.1][:, None]
        chosen, *others = (ill >= cuts).mean(1) - (well >= cuts).mean(1)
        assert chosen >= max(others) - 1e-12


def test_the_threshold_lies_in_the_middle_of_its_plateau():
    labels = np.array([0, 0, 1, 1])
    for p, middle in (
        ([0.1, 0.2, 0.6, 0.9], 0.4),
        # Two plateaus are as good: (0.1, 0.2] and (0.3, 0.9]. The wider one is safer.
        ([0.1, 0.3, 0.2, 0.9], 0.6),
        ([0.1, 0.8, 0.7, 0.9], 0.4),  # (0.1, 0.7] is wider than (0.8, 0.9]
    ):
        assert choose_threshold(labels, np.array(p)) == pytest.approx(middle)
    with pytest.raises(ValueError, match="no slide of class 1"):
        choose_threshold(np.zeros(3, int), np.array([0.1, 0.2, 0.3]))
    neighbours = np.array([0.5, np.nextafter(0.5, 1)])
    t = choose_threshold(np.array([0, 1]), neighbours)
    assert list(neighbours >= t) == [False, True]


def test_a_patient_is_the_mean_of_the_slides_and_as_ill_as_the_worst():
    p = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [1.0, 0.0]])
    patients = ["b", "a", "b", "c"]
    labels, pooled, ids = metrics.by_patient(np.array([1, 1, 0, 0]), p, patients)
    assert list(ids) == ["a", "b", "c"]
    assert list(labels) == [1, 1, 0]
    np.testing.assert_allclose(pooled, [[0.3, 0.7], [0.55, 0.45], [1, 0]])


def test_calibration_error_of_known_bins():
    # Claims of 0.25 come true half the time, claims of 0.95 always: 10 bins.
    p = np.array([0.25] * 4 + [0.95] * 4)
    labels = np.array([0, 0, 1, 1] + [1] * 4)
    both = np.stack([1 - p, p], -1)
    error = metrics.calibration_error(labels, both)
    assert error == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)
    curve = metrics.calibration(*metrics.confidence(labels, both))
    np.testing.assert_allclose(curve, [[0.25, 0.95], [0.5, 1], [4, 4]])
