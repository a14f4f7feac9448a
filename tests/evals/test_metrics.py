"""Metrics are scikit-learn's, a weight is a repetition, a threshold is the best one."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

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
    average = {"average": "binary" if c == 2 else "macro"}
    one_hot = np.eye(c)[labels]
    theirs = {
        "auc": sklearn_metrics.roc_auc_score(
            labels, p[:, 1] if c == 2 else p, multi_class="ovr"
        ),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(labels, predicted),
        "f1": sklearn_metrics.f1_score(labels, predicted, **average),
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "average_precision": sklearn_metrics.average_precision_score(
            labels if c == 2 else one_hot, p[:, 1] if c == 2 else p
        ),
        "log_loss": sklearn_metrics.log_loss(labels, p),
    }
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-12, err_msg=name)
    np.testing.assert_array_equal(
        metrics.confusion(labels, predicted, c),
        sklearn_metrics.confusion_matrix(labels, predicted),
    )
    rates = metrics.class_rates(metrics.confusion(labels, predicted, c))
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted
    )
    np.testing.assert_allclose(rates["precision"], precision)
    np.testing.assert_allclose(rates["recall"], recall)
    np.testing.assert_allclose(rates["f1"], f1)


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


def test_roc_points_are_those_of_scikit_learn():
    labels, p = draw(3)
    theirs = sklearn_metrics.roc_curve(labels, p[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(metrics.roc_points(labels == 1, p[:, 1]), theirs[:2])


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


def test_two_classes_need_a_threshold_and_more_have_none():
    with pytest.raises(ValueError, match="choose_threshold"):
        metrics.predict(np.full((2, 2), 0.5), None)
    with pytest.raises(ValueError, match="3 classes"):
        metrics.predict(np.full((2, 3), 1 / 3), 0.5)


@pytest.mark.parametrize("seed", range(10))
def test_no_threshold_is_better_than_the_chosen_one(seed):
    labels, p = draw(seed, n=25)
    p = p[:, 1]

    def youden(t):
        return np.mean(p[labels == 1] >= t) - np.mean(p[labels == 0] >= t)

    chosen = youden(choose_threshold(labels, p))
    assert chosen >= max(map(youden, np.r_[p, 0, 1.1])) - 1e-12


def test_the_threshold_lies_in_the_middle_of_its_plateau():
    labels = np.array([0, 0, 1, 1])
    assert choose_threshold(labels, np.array([0.1, 0.2, 0.6, 0.9])) == 0.4
    # Two plateaus are as good: (0.1, 0.2] and (0.3, 0.9]. The wider one is safer.
    p = np.array([0.1, 0.3, 0.2, 0.9])
    assert choose_threshold(labels, p) == pytest.approx(0.6)
    p = np.array([0.1, 0.8, 0.7, 0.9])  # (0.1, 0.7] is wider than (0.8, 0.9]
    assert choose_threshold(labels, p) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="no slide of class 1"):
        choose_threshold(np.zeros(3, int), np.array([0.1, 0.2, 0.3]))


def test_neighbouring_floats_are_separated():
    low = 0.5
    p = np.array([low, np.nextafter(low, 1)])
    t = choose_threshold(np.array([0, 1]), p)
    assert list(p >= t) == [False, True]


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
