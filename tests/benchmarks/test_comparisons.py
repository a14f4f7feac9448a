"""Rows that compare learners: paired on the same slides, over independent cohorts."""

import numpy as np
import pytest

from benchmarks.comparisons import (
    MEASURES,
    crops_differences,
    means,
    picture,
    pooling_differences,
    tuned,
    weights_name,
)
from benchmarks.run_folder import Run
from wsi_jax.evals.intervals import delong_difference
from wsi_jax.run.run_folder import write_csv, write_json

POSITIVE = np.arange(60) % 2 == 1


def written(folder, scores, reverse=False) -> Run:
    """A run's folder with test slides' scores, in either order."""
    write_json(folder / "config.json", {"config": {}, "commit": "c" * 40})
    lines = [
        {"slide_id": f"s{i:03}", "label": "tumor" if i % 2 else "normal", "p_tumor": p}
        for i, p in enumerate(scores)
    ]
    write_csv(folder / "predictions.csv", lines[::-1] if reverse else lines)
    return Run(folder)


@pytest.fixture
def runs(tmp_path):
    """Rows and runs of three learners on two cohorts, and the scores of each."""
    rng, rows, scores = np.random.default_rng(0), [], {}
    for seed in (1, 2):
        for learner, shift in (("learnt", 2.0), ("uniform", 0.5), ("patch-all", 1.0)):
            scores[learner, seed] = p = rng.normal(size=60) + shift * POSITIVE
            row = {"preset": "needle", "seed": seed, "learner": learner}
            row |= {"crops": None if learner == "patch-all" else 16, "attentions": 8}
            row |= {"auc": 0.8, "auc_lo": 0.7, "auc_hi": 0.9}
            folder = tmp_path / f"{learner}_{seed}"
            rows.append((row, written(folder, p, reverse=learner == "uniform")))
    return rows, scores


def test_differences_are_paired_and_those_of_independent_cohorts(runs):
    rows, scores = runs
    gaps = crops_differences(rows)
    for gap, other in zip(gaps, ("uniform", "patch-all"), strict=True):
        each = [
            delong_difference(POSITIVE, scores["learnt", s], scores[other, s])
            for s in (1, 2)
        ]
        assert gap["learner"] == f"learnt - {other}"
        np.testing.assert_allclose(gap["auc_diff"], np.mean([d.value for d in each]))
        half = np.hypot(*((d.hi - d.lo) / 2 for d in each)) / 2
        np.testing.assert_allclose(gap["auc_diff_hi"] - gap["auc_diff"], half)
        assert gap["cohorts"] == 2


def test_a_budget_of_one_learner_has_no_difference(runs):
    assert crops_differences([r for r in runs[0] if r[0]["learner"] == "learnt"]) == []


def test_the_picture_is_of_every_learner(runs, tmp_path):
    picture([row for row, _ in runs[0]], tmp_path / "crops.png")
    assert (tmp_path / "crops.png").stat().st_size > 5000


def pooled(seed, weights, auc, loss, half=0.1):
    row = {"preset": "needle", "seed": seed, "weights": weights, "n": 160}
    row |= {"joint": False, "val_log_loss": loss}
    for name in MEASURES:
        row |= {name: auc, f"{name}_lo": auc - half, f"{name}_hi": auc + half}
    return row


def test_the_power_is_chosen_on_validation_slides():
    """Whatever the test slides say; where one alone was tried there is no choice."""
    rows = [
        pooled(1, "squared average", 0.9, 0.5),
        pooled(1, "power 4", 0.6, 0.4),
        pooled(1, "softmax", 0.7, 0.1),
        pooled(2, "squared average", 0.9, 0.5),
    ]
    assert tuned(rows) == [rows[1] | {"weights": "power, tuned"}]


def test_the_interval_of_a_mean_is_that_of_independent_cohorts():
    rows = [pooled(seed, "softmax", auc, 0.1) for seed, auc in ((1, 0.6), (2, 0.8))]
    (mean,) = means(rows)
    assert (mean["seeds"], mean["n"]) == (2, 320)
    assert mean["auc"] == pytest.approx(0.7)
    assert mean["auc_hi"] - mean["auc"] == pytest.approx(0.1 / 2**0.5)


def test_joint_training_is_compared_on_the_same_slides(tmp_path):
    """Where a cohort has both, and whatever the order of their slides."""
    p = np.array([0.1, 0.4, 0.35, 0.8, 0.7, 0.2])
    rows = [
        (pooled(1, "softmax", 0.5, 0.5), written(tmp_path / "a", p)),
        (pooled(1, "softmax, joint", 0.5, 0.5), written(tmp_path / "b", 1 - p, True)),
        (pooled(2, "softmax, joint", 0.5, 0.5), written(tmp_path / "c", 1 - p)),
    ]
    (gap,) = pooling_differences(rows)
    assert (gap["cohorts"], gap["preset"]) == (1, "needle")
    wins = np.mean([[a > b for b in p[::2]] for a in p[1::2]])
    assert gap["auc_diff"] == pytest.approx(1 - 2 * wins)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "squared average"),
        ({"head.power": 4.0}, "power 4"),
        ({"head.normaliser": "bounded_softmax"}, "bounded softmax"),
        ({"head.pooling": "max", "joint": True}, "max"),
        ({"joint": True}, "squared average, joint"),
    ],
)
def test_what_weighs_the_tiles_has_a_name(fields, name):
    head = {"normaliser": "squared_average", "power": 2.0, "pooling": "attention"}
    config = {f"method.head.{k}": v for k, v in head.items()}
    config |= {"method.joint": False}
    assert weights_name(config | {f"method.{k}": v for k, v in fields.items()}) == name
