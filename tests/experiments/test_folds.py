"""Cross-validation without a test split: several models, and one number of them all."""

import numpy as np
import pytest
from run_files import table

from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.evals.metrics import slide_metrics
from wsi_jax.evals.threshold import choose_threshold
from wsi_jax.methods.sasha import SASHA
from wsi_jax.run.cohort_predictions import Predicted, Predictions
from wsi_jax.run.config import Experiment
from wsi_jax.run.evaluate import evaluate, write_predictions
from wsi_jax.run.write_report import write_report

CONFIG = Experiment(method=SASHA())  # its own strategy is called "policy"
CLASSES = "normal", "tumor"
SAME = [(1, 0)] * 5
OTHERS = [(0.5, 1), (0.8, -1), (1, 0.5), (1.4, -0.5), (2, 0)]


def slides(n):
    """A cohort of which a fifth is positive, each slide of a patient of its own."""
    labels = (np.arange(n) < n // 5).astype(int)
    rows = (Row(f"s{i}", "", CLASSES[k], f"p{i}", "") for i, k in enumerate(labels))
    return Cohort(tuple(rows), CLASSES), labels


def log_odds(rng, labels, gap=1.466):
    """Those of a calibrated model whose AUC is .85."""
    x, share = rng.normal(size=len(labels)) + gap * labels, labels.mean()
    return gap * x - gap**2 / 2 + np.log(share / (1 - share))


def probabilities(logits):
    positive = 1 / (1 + np.exp(-logits))
    return np.stack([1 - positive, positive], -1)


def predicted(cohort, p, rival=None):
    """Predictions of slides; those of a baseline beside them."""
    others = {} if rival is None else {"rival": rival}
    return [
        Predicted(
            row, one, 0, np.ones(1), 0.0, others={k: v[i] for k, v in others.items()}
        )
        for i, (row, one) in enumerate(zip(cohort.rows, p, strict=True))
    ]


def cross_validated(rng, cohort, labels, logits, models, rival=False):
    """Of each fold, whose model is (slope, offset) on the log-odds; with 20 slides to
    choose a threshold on."""
    fold, tested = np.arange(len(labels)) % len(models), []
    for k, (slope, offset) in enumerate(models):
        p = probabilities(slope * logits + offset)
        val = rng.permutation(np.flatnonzero(fold == (k + 1) % len(models)))
        val = np.r_[val[labels[val] == 1][:4], val[labels[val] == 0][:16]]
        threshold = choose_threshold(labels[val], p[val, 1])
        own = predicted(cohort, p, p if rival else None)[k :: len(models)]
        tested.append(
            Predictions(own, threshold, {"rival": threshold} if rival else {})
        )
    return tested


@pytest.mark.parametrize("models", [SAME, OTHERS], ids=["one model", "five scales"])
def test_folds_of_one_order_have_the_auc_of_their_model(models):
    """However its thresholds, slopes and offsets differ from fold to fold."""
    rng, gaps = np.random.default_rng(0), []
    for _ in range(2):
        cohort, labels = slides(1000)
        logits = log_odds(rng, labels)
        truth = slide_metrics(labels, probabilities(logits), 0.5)
        tested = cross_validated(rng, cohort, labels, logits, models)
        metrics, _ = evaluate(CONFIG, cohort, tested)
        gaps.append(metrics["test.auc"] - truth["auc"])
        if models is SAME:
            for name in ("calibration_error", "log_loss", "average_precision"):
                assert metrics[f"test.{name}"] == pytest.approx(truth[name])
            assert metrics["test.auc_pooled"] == pytest.approx(truth["auc"])
    assert abs(np.mean(gaps)) < (0.003 if models is SAME else 0.005)


def test_each_fold_decides_at_its_own_threshold_and_nothing_else_is_changed(tmp_path):
    """The mean of both thresholds would call neither slide as its own fold does."""
    cohort = Cohort(
        tuple(
            Row(f"s{i}", "", CLASSES[k], f"p{i}", "")
            for i, k in enumerate([1, 0, 1, 0])
        ),
        CLASSES,
    )
    positive = np.array([0.3, 0.1, 0.9, 0.7])
    made = predicted(cohort, np.stack([1 - positive, positive], -1))
    tested = [Predictions(made[:2], 0.2), Predictions(made[2:], 0.8)]
    metrics, results = evaluate(CONFIG, cohort, tested)
    assert [CLASSES[v.called] for v in results] == ["tumor", "normal"] * 2
    assert metrics["test.balanced_accuracy"] == metrics["test.f1"] == 1
    assert "test.threshold" not in metrics
    assert [metrics[f"test.fold.{k}.threshold"] for k in (0, 1)] == [0.2, 0.8]
    # The slide at .7 of one fold lies above the one at .3 of the other.
    assert (metrics["test.auc"], metrics["test.auc_pooled"]) == (1, 0.75)
    write_predictions(tmp_path / "p.csv", results, cohort)
    lines = table(tmp_path / "p.csv")
    assert [line["fold"] for line in lines] == ["0", "0", "1", "1"]
    assert [float(line["p_tumor"]) for line in lines] == positive.tolist()
    summary = {name.removeprefix("test."): v for name, v in metrics.items()}
    text = write_report.text(summary, 4, ("normal", "tumor"))
    assert "AUC within folds" in text
    assert "AUC, all folds pooled 0.750" in text
    assert "predicted" not in text  # each fold has a threshold of its own
    text = write_report.text(summary | {"threshold": 0.25}, 4, ("normal", "tumor"))
    assert "note: predicted tumor from a probability of 0.250, chosen on val" in text
    assert "every slide" not in text
    none = {"threshold": 0.9, "sensitivity": 0.0, "specificity": 1.0}
    text = write_report.text(summary | none, 4, ("normal", "tumor"))
    assert "every slide is predicted normal" in text
    *_, by_fold = write_report.results(summary, "")
    assert by_fold.header == ("fold", "slides", "threshold", "AUC", "balanced accuracy")
    assert [row[2] for row in by_fold.rows] == ["0.200", "0.800"]


@pytest.mark.parametrize("folds", ["none", "apart", "together"])
def test_a_baseline_equal_to_the_method_has_equal_metrics(folds):
    """Where there are no folds, each tests its own slides, or all the same ones."""
    rng, (cohort, labels) = np.random.default_rng(1), slides(60)
    logits = log_odds(rng, labels)
    if folds == "apart":
        tested = cross_validated(rng, cohort, labels, logits, OTHERS, rival=True)
    else:
        scales = OTHERS if folds == "together" else OTHERS[:1]
        every = [probabilities(slope * logits + offset) for slope, offset in scales]
        cuts = rng.uniform(0.2, 0.6, len(every)).tolist()
        tested = [
            Predictions(predicted(cohort, p, p), cut, {"rival": cut})
            for p, cut in zip(every, cuts, strict=True)
        ]
    metrics, _ = evaluate(CONFIG, cohort, tested)
    of = lambda method: {
        name.removeprefix(f"test.inference.{method}."): value
        for name, value in metrics.items()
        if name.startswith(f"test.inference.{method}.")
    }
    ours, rival = of("policy"), of("rival")
    assert {name: rival[name] for name in ours} == ours
    assert ours["balanced_accuracy"] == metrics["test.balanced_accuracy"]
    if folds != "apart":
        assert ours["threshold"] == metrics["test.threshold"] == rival["threshold"]


def test_a_baseline_decides_at_a_threshold_of_its_own():
    """Half the method's probability is as good an order, at half its threshold."""
    rng, (cohort, labels) = np.random.default_rng(2), slides(60)
    p = probabilities(log_odds(rng, labels))
    half = np.stack([1 - p[:, 1] / 2, p[:, 1] / 2], -1)
    tested = [Predictions(predicted(cohort, p, half), 0.3, {"rival": 0.15})]
    metrics, _ = evaluate(CONFIG, cohort, tested)
    for name in ("auc", "balanced_accuracy", "f1"):
        assert (
            metrics[f"test.inference.rival.{name}"]
            == metrics[f"test.inference.policy.{name}"]
        )
    assert metrics["test.inference.rival.threshold"] == 0.15
