"""Runs that zoom, collected: each way of each run, and what the policy gains."""

import json

import numpy as np
import pytest

from benchmarks.zoom_runs import AGAINST, differences, rows_of
from benchmarks.zoom_tables import zoom_runs
from wsi_jax.evals.intervals import delong, delong_difference
from wsi_jax.provenance import provenance

WAYS = {"policy": 2.0, "random": 0.5, "oracle": 4.0, "grid": 0.4}
WAYS |= {"low_attention": 1.0, "full_resolution": 5.0}


@pytest.fixture
def runs(tmp_path):
    """Two cohorts: {folder: scores by way}, and which slides are tumours."""
    found, positive = {}, np.arange(60) % 2 == 1
    for seed in (1, 2):
        rng, cohort = np.random.default_rng(seed), tmp_path / f"cohort_{seed}"
        cohort.mkdir()
        about = {"config": {"preset": "needle", "seed": seed}}
        (cohort / "cohort.json").write_text(json.dumps(about))
        run = tmp_path / f"run_{seed}"
        run.mkdir()
        data = {"manifest": str(cohort / "slides.csv")}
        config = {"data": data, "method": {"share": 0.2}}
        made = {"config": config, "commit": "c" * 40}
        (run / "config.json").write_text(json.dumps(made))
        p = {way: rng.normal(size=60) + shift * positive for way, shift in WAYS.items()}
        names = ["p_tumor" if way == "policy" else f"{way}.p_tumor" for way in p]
        lines = [",".join(["slide_id", "label", *names])]
        for i, label in enumerate(np.where(positive, "tumor", "normal")):
            scores = (str(values[i]) for values in p.values())
            lines.append(",".join([f"s{i:03}", label, *scores]))
        (run / "predictions.csv").write_text("\n".join(lines[:1] + lines[:0:-1]))
        found[run] = p
    return found, positive


def test_each_way_has_its_own_scores(runs):
    found, positive = runs
    for run, p in found.items():
        rows = {row["way"]: row for row in rows_of(run)}
        assert set(rows) == set(WAYS)
        for way, row in rows.items():
            assert row["auc"] == pytest.approx(delong(positive, p[way]).value)
            assert (row["share"], row["n"], row["preset"]) == (0.2, 60, "needle")


def test_differences_are_paired_and_the_gap_is_that_of_the_means(runs):
    found, positive = runs
    rows = {row["way"]: row for row in differences(list(found))}
    assert set(rows) == {f"policy - {other}" for other in AGAINST}
    each = [delong_difference(positive, p["policy"], p["grid"]) for p in found.values()]
    one = rows["policy - grid"]
    np.testing.assert_allclose(one["auc_diff"], np.mean([d.value for d in each]))
    half = np.hypot(*((d.hi - d.lo) / 2 for d in each)) / 2
    np.testing.assert_allclose(one["auc_diff_hi"] - one["auc_diff"], half)
    mean = lambda way: np.mean([delong(positive, p[way]).value for p in found.values()])
    closed = (mean("policy") - mean("random")) / (mean("oracle") - mean("random"))
    assert one["gap_closed"] == pytest.approx(closed)


def test_the_table_holds_every_way(runs):
    found, _ = runs
    rows = [row for run in found for row in rows_of(run)] + differences(list(found))
    said = zoom_runs(provenance() | {"rows": rows})
    assert said.count("\n| `needle` | 20% |") == len(WAYS)
    assert "policy - low attention" in said
