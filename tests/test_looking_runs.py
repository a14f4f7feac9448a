"""Runs that look, collected: differences are paired, and tables hold every run."""

import numpy as np
import pytest

from benchmarks.looking_runs import differences, picture
from benchmarks.looking_tables import magnification, needle
from wsi_jax.evals.intervals import delong_difference
from wsi_jax.provenance import provenance


@pytest.fixture
def runs(tmp_path):
    """Learnt and uniform on two cohorts: {folder: row}, and the scores of each."""
    rng, rows, scores = np.random.default_rng(0), {}, {}
    positive = np.arange(60) % 2 == 1
    for seed in (1, 2):
        for learner, shift in (("learnt", 2.0), ("uniform", 0.5), ("patch-all", 1.0)):
            run = tmp_path / f"{learner}_{seed}"
            run.mkdir()
            p = rng.normal(size=60) + shift * positive
            lines = ["slide_id,label,p_tumor"] + [
                f"s{i:03},{'tumor' if label else 'normal'},{score}"
                for i, (label, score) in enumerate(zip(positive, p, strict=True))
            ]
            (run / "predictions.csv").write_text("\n".join(lines[:1] + lines[:0:-1]))
            crops = None if learner == "patch-all" else 16
            row = {"preset": "needle", "seed": seed, "learner": learner, "crops": crops}
            row |= {
                "n_train": 480,
                "attentions": 8,
                "auc": 0.8,
                "auc_lo": 0.7,
                "auc_hi": 0.9,
                "n": 60,
                "steps": 400,
                "minutes": 5.25,
                "run_cores": 1,
            }
            rows[run], scores[learner, seed] = row | {"run_commit": "c" * 40}, p
    return rows, scores, positive


def test_differences_are_those_of_independent_cohorts(runs):
    rows, scores, positive = runs
    for found, other in zip(differences(rows), ("uniform", "patch-all"), strict=True):
        each = [
            delong_difference(positive, scores["learnt", s], scores[other, s])
            for s in (1, 2)
        ]
        assert found["learner"] == f"learnt - {other}"
        np.testing.assert_allclose(found["auc_diff"], np.mean([d.value for d in each]))
        half = np.hypot(*((d.hi - d.lo) / 2 for d in each)) / 2
        np.testing.assert_allclose(found["auc_diff_hi"] - found["auc_diff"], half)
        assert found["cohorts"] == 2


def test_a_budget_of_one_learner_has_no_difference(runs):
    rows = {run: row for run, row in runs[0].items() if row["learner"] == "learnt"}
    assert differences(rows) == []


def test_tables_and_picture_hold_every_run(runs):
    rows = list(runs[0].values())
    gap = {"crops": 16, "attentions": 8, "cohorts": 2}
    gap |= {"auc_diff": 0.1, "auc_diff_lo": 0.05, "auc_diff_hi": 0.15}
    gaps = [
        gap | {"learner": f"learnt - {other}"} for other in ("uniform", "patch-all")
    ]
    gaps[1] |= {"auc_diff": -0.2}
    lines = needle(provenance() | {"rows": [*rows, *gaps]}).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| 16", "| 16", "| all"]
    of = "(+0.050 to +0.150) with 16 crops, 8 attentions, 2 cohorts"
    assert f"uniform, paired: +0.100 {of}" in "\n".join(lines)
    assert f"patch-all, paired: -0.200 {of}" in "\n".join(lines)
    assert (
        "The 6 runs with 8 attentions took 32 minutes in all, each on 1 core."
        in "\n".join(lines)
    )
    (axes,) = picture(rows).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["learnt", "uniform", "patch-all, mean"]


def test_a_table_of_magnifications_tells_how_far_it_was_from_uniform(runs):
    shares = {"mass_1": 0.9, "mass_4": 0.1, "first_1": 0.51, "first_4": 0.49}
    shares |= {"last_1": 0.8, "last_4": 0.2, "cells": 72}
    rows = [row | shares for row in runs[0].values() if row["crops"]]
    held = {"signal": 3, "signal_held": 2, "none": 9, "none_held": 9}
    rows += [row | {"seed": 3} | held for row in rows]
    rows += [row | {"seed": 2} for row in rows if row["seed"] == 3]
    rows += [rows[0] | {"preset": "null", "last_1": 0.6, "last_4": 0.4}]
    said = magnification(provenance() | {"rows": rows})
    assert "| `needle` | 1 | 0.90 | 0.10 | 0.800 (0.700 to 0.900) |" in said
    assert "no share is further than 0.010 from 1/2" in said
    assert "when training ends no share of `null` is further than 0.100" in said
    assert "16 crops of a slide; it has 72 cells, on average of a cohort." in said
    assert "480 training slides and 60 test slides" in said
    held, without = "`needle` 2, 3: 22 of 24", "`needle` 1; `null` 1"
    assert f"that hold: {held}. Without one: {without}. Runs" in said
