"""One flat dict, in which no number pretends to be surer than it is."""

import json

import numpy as np
import pytest

from wsi_jax.evals import intervals, metrics
from wsi_jax.evals.summary import summarise_split

CLASSES = ("normal", "tumor")


def cohort(n=80, c=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % c
    logits = rng.normal(size=(n, c)) + 1.5 * np.eye(c)[labels]
    p = np.exp(logits)
    return labels, p / p.sum(1, keepdims=True)


def test_the_parts_are_the_metrics_of_the_parts():
    labels, p = cohort()
    patients = [f"p{i // 4 * 2 + i % 2}" for i in range(80)]  # two slides, one class
    sites = np.array(["rumc", "umcu", "umcu", ""] * 20)
    summary = summarise_split(
        labels, p, CLASSES, patients=patients, sites=sites, threshold=0.4
    )
    plain = metrics.slide_metrics(labels, p, 0.4)
    assert {k: summary[k] for k in plain} == pytest.approx(plain)
    assert (summary["n"], summary["n_patients"], summary["patient.n"]) == (80, 40, 40)
    pooled = metrics.by_patient(labels, p, patients)
    assert summary["patient.auc"] == pytest.approx(
        metrics.auc(pooled[0] == 1, pooled[1][:, 1])
    )
    expected = intervals.delong(labels == 1, p[:, 1], patients)
    assert [summary[k] for k in ("auc", "auc_lo", "auc_hi")] == pytest.approx(expected)
    assert "calibration_error_lo" not in summary
    at = sites == "umcu"
    assert summary["site.umcu.n"] == at.sum()
    assert (
        summary["site.umcu.f1"] == metrics.slide_metrics(labels[at], p[at], 0.4)["f1"]
    )
    assert summary["site.unknown.n"] == 20
    assert summary["per_class.tumor.recall"] == summary["sensitivity"]
    cells = [summary[f"confusion.{i}.{j}"] for i in CLASSES for j in CLASSES]
    assert (
        cells == metrics.confusion(labels, metrics.predict(p, 0.4), 2).ravel().tolist()
    )
    assert json.loads(json.dumps(summary)) == pytest.approx(summary, nan_ok=True)


@pytest.mark.parametrize("c", [2, 3])
def test_groups_have_an_auc_of_their_own_pairs_and_thresholds_of_their_own(c):
    labels, p = cohort(c=c)
    names = ("normal", "tumor", "mimic")[:c]
    group = np.arange(80) // 4 % 5
    patients = np.arange(80) // 2
    cut = np.array([0.3, 0.4, 0.5, 0.6, 0.7])[group] if c == 2 else None
    summary = summarise_split(
        labels, p, names, patients=patients, threshold=cut, groups=group
    )
    of = lambda groups: np.mean(
        [
            metrics.auc(labels == k, p[:, k], groups=groups)
            for k in ([1] if c == 2 else range(c))
        ]
    )
    assert summary["auc"] == pytest.approx(of(group))
    assert summary["auc_pooled"] == pytest.approx(of(None))
    assert summary["auc_lo"] < summary["auc"] < summary["auc_hi"]
    within = intervals.delong(labels == 1, p[:, 1], patients, groups=group)
    keys = [f"per_class.tumor.auc{end}" for end in ("", "_lo", "_hi")]
    assert [summary[key] for key in keys] == pytest.approx(within)
    assert summary["accuracy"] == (metrics.predict(p, cut) == labels).mean()
    assert "threshold" not in summary
    assert "patient.auc_pooled" in summary
    with pytest.raises(ValueError, match="patient '0' lie in several folds"):
        summarise_split(
            labels, p, names, patients=patients, threshold=cut,
            groups=np.arange(80) % 2,
        )  # fmt: skip


def test_every_interval_holds_its_value():
    for c, threshold in ((2, 0.5), (3, None)):
        labels, p = cohort(c=c)
        names = ("normal", "tumor", "mimic")[:c]
        summary = summarise_split(labels, p, names, threshold=threshold)
        ends = [key.removesuffix("_lo") for key in summary if key.endswith("_lo")]
        assert {"auc", "balanced_accuracy", "f1", "accuracy"} <= set(ends)
        for name in ends:
            assert summary[f"{name}_lo"] <= summary[name] <= summary[f"{name}_hi"], name
            assert summary[f"{name}_lo"] < summary[f"{name}_hi"], name


@pytest.mark.parametrize("c", [2, 3])
def test_a_perfect_score_on_few_slides_is_not_certain(c):
    labels = np.arange(10 * c) % c
    p = 0.9 * np.eye(c)[labels] + 0.1 / c
    names = ("normal", "tumor", "mimic")[:c]
    summary = summarise_split(labels, p, names, threshold=0.5 if c == 2 else None)
    shares = ["auc", "balanced_accuracy", "f1", "accuracy", "average_precision"]
    for name in shares + ["sensitivity", "specificity"] * (c == 2):
        assert summary[name] == summary[f"{name}_hi"] == 1
        assert 0.6 < summary[f"{name}_lo"] < 0.95, name
    if c == 2:
        assert summary["sensitivity_lo"] == intervals.wilson(1.0, 10)[0]


def test_a_site_of_one_class_has_accuracy_but_no_auc():
    """Nor have patients who are all ill in part of their slides."""
    labels, p = cohort(n=12)
    sites = np.where(labels == 1, "rumc", "umcu")
    summary = summarise_split(labels, p, CLASSES, sites=sites, threshold=0.5)
    for end in ("", "_lo", "_hi"):
        assert np.isnan(summary[f"site.umcu.auc{end}"])
        assert not np.isnan(summary[f"site.umcu.accuracy{end}"])
    labels, p = np.array([0, 1, 0, 1]), np.array([[0.8, 0.2], [0.1, 0.9]] * 2)
    summary = summarise_split(labels, p, CLASSES, patients=list("aabb"), threshold=0.5)
    assert summary["specificity"] == summary["patient.sensitivity"] == 1
    assert np.isnan(summary["patient.auc"])


def test_few_patients_have_a_note_and_very_few_no_interval():
    labels, p = cohort(n=40)
    keep = np.r_[np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:7]]
    seven = summarise_split(labels[keep], p[keep], CLASSES, threshold=0.5)
    assert seven["auc_lo"] < seven["auc"] < seven["auc_hi"]
    assert seven["interval_note"].startswith("patients: tumor 7; ")
    four = summarise_split(labels[keep[:-3]], p[keep[:-3]], CLASSES, threshold=0.5)
    rare = ("auc", "f1", "balanced_accuracy", "average_precision", "sensitivity")
    for name in (*rare, "per_class.tumor.auc", "per_class.normal.auc"):
        assert np.isnan([four[f"{name}_lo"], four[f"{name}_hi"]]).all(), name
        assert not np.isnan(four[name]), name
    for name in ("accuracy", "specificity", "log_loss"):
        assert four[f"{name}_lo"] < four[name] < four[f"{name}_hi"]
    # Slides do not make up for patients.
    many = np.repeat(keep[:-3], 3)
    summary = summarise_split(
        labels[many], p[many], CLASSES, patients=many, threshold=0.5, sites=["a"] * 72
    )
    assert summary["interval_note"] == four["interval_note"]
    assert summary["patient.interval_note"] == four["interval_note"]
    assert summary["site.a.interval_note"] == four["interval_note"]
    labels, p = cohort(n=40)
    assert "interval_note" not in summarise_split(labels, p, CLASSES, threshold=0.5)
