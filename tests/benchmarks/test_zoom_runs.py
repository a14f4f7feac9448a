"""Runs that zoom: each strategy of each run, and what the policy gains."""

import numpy as np
import pytest
from scipy.special import expit

from benchmarks.run_folder import Run
from benchmarks.zoom_runs import AGAINST, differences, settings, strategy_rows
from experiments.configs import camelyon16
from experiments.configs.phantom import sasha
from wsi_jax.config_fields import flatten, to_plain
from wsi_jax.evals.intervals import delong, delong_difference
from wsi_jax.run.run_folder import read_csv, write_csv, write_json

STRATEGIES = {"policy": 2.0, "random": 0.5, "oracle": 4.0, "grid": 0.4}
STRATEGIES |= {"low_attention": 1.0, "ranking": 1.5, "full_resolution": 5.0}
STRATEGIES |= {"low_resolution": 0.3}


@pytest.fixture
def runs(tmp_path):
    """Two cohorts: {run: scores by strategy}, and which slides are tumours."""
    scores, positive = {}, np.arange(60) % 2 == 1
    for seed in (1, 2):
        rng, folder = np.random.default_rng(seed), tmp_path / f"cohort_{seed}"
        about = {"config": {"preset": "needle", "seed": seed}}
        write_json(folder / "cohort.json", about)
        areas = [("t", "train", "tumor", 1), ("s0", "test", "normal", 0)]
        areas += [("s1", "test", "tumor", 1023)]
        areas += [(f"s{i}", "test", "tumor", 1024) for i in (3, 5, 7)]
        names = ("slide_id", "split", "label", "lesion_um2")
        lines = [dict(zip(names, row, strict=True)) for row in areas]
        write_csv(folder / "slides.csv", lines)
        config = {
            "data": {"manifest": str(folder / "slides.csv")},
            "method": to_plain(sasha.get_config().method),
            "grid": {"mpp": 4.0, "size_px": 32},  # children of 32 um
        }
        run = tmp_path / f"run_{seed}"
        write_json(run / "config.json", {"config": config, "commit": "c" * 40})
        p = {
            way: expit(rng.normal(size=60) + shift * positive)
            for way, shift in STRATEGIES.items()
        }
        column = lambda way: "p_tumor" if way == "policy" else f"{way}.p_tumor"
        lines = [
            {"slide_id": f"s{i:03}", "label": "tumor" if tumour else "normal"}
            | {column(way): float(values[i]) for way, values in p.items()}
            for i, tumour in enumerate(positive)
        ]
        write_csv(run / "predictions.csv", lines[::-1])
        # And a slide that was trained on.
        counts = {f"s{i:03}": 100 if i % 2 else 52 for i in range(60)} | {"t000": 9999}
        lines = [{"slide_id": name, "tiles": n} for name, n in counts.items()]
        write_csv(run / "slides.csv", lines)
        scores[Run(run)] = p
    return scores, positive


def test_each_strategy_has_its_own_scores(runs):
    scores, positive = runs
    for run, p in scores.items():
        rows = {row["way"]: row for row in strategy_rows(run)}
        assert set(rows) == set(STRATEGIES)
        for way, row in rows.items():
            assert row["auc"] == pytest.approx(delong(positive, p[way]).value)
            assert (row["share"], row["n"], row["preset"]) == (0.2, 60, "needle")
            chance, bins = p[way], np.minimum((p[way] * 10).astype(int), 9)
            gaps = [abs((chance - positive)[bins == i].sum()) for i in range(10)]
            assert row["calibration_error"] == pytest.approx(sum(gaps) / 60)
            wanted = dict.fromkeys(("full_resolution", "oracle"), 16 * 76)
            wanted |= {"low_resolution": 76}
            partly = 76 + 16 * (20 + 11) / 2
            assert row["tiles_read"] == wanted.get(way, partly)
            assert row["lesions_within_a_child"] == 0.25


def test_differences_are_paired_and_the_gap_is_that_of_the_means(runs):
    scores, positive = runs
    rows = {row["way"]: row for row in differences(list(scores))}
    assert set(rows) == {f"policy - {other}" for other in AGAINST}
    each = [
        delong_difference(positive, p["policy"], p["grid"]) for p in scores.values()
    ]
    one = rows["policy - grid"]
    np.testing.assert_allclose(one["auc_diff"], np.mean([d.value for d in each]))
    half = np.hypot(*((d.hi - d.lo) / 2 for d in each)) / 2
    np.testing.assert_allclose(one["auc_diff_hi"] - one["auc_diff"], half)
    mean = lambda way: np.mean(
        [delong(positive, p[way]).value for p in scores.values()]
    )
    closed = (mean("policy") - mean("random")) / (mean("oracle") - mean("random"))
    assert one["gap_closed"] == pytest.approx(closed)


@pytest.mark.parametrize("better", [0, 1])
def test_no_gap_is_closed_where_none_is_certain(runs, better):
    """Where the oracle says what random choices say, but for a slide or none."""
    one, _ = runs[0]
    lines = read_csv(one.folder / "predictions.csv")
    for line in lines:
        line["oracle.p_tumor"] = line["random.p_tumor"]
    tumours = [line for line in lines if line["label"] == "tumor"]
    for line in sorted(tumours, key=lambda line: line["random.p_tumor"])[:better]:
        line["oracle.p_tumor"] = "1"
    write_csv(one.folder / "predictions.csv", lines)
    auc = {row["way"]: row["auc"] for row in strategy_rows(one)}
    assert (auc["oracle"] > auc["random"]) == bool(better)
    assert {row["gap_closed"] for row in differences([one])} == {None}


def test_a_run_has_our_settings_or_the_papers(runs):
    ours, paper = sasha.ours(), sasha.paper()
    cold = sasha.ours()
    cold.method.policy.init_from_ranking = False
    configs = ours, paper, camelyon16.get_config("sasha_paper"), cold
    names = [settings(flatten(to_plain(config))) for config in configs]
    assert names == ["ours", "paper", "paper", "ours, cold"]
    one, other = runs[0]
    other.made["config"]["method"] = to_plain(paper.method)
    write_json(other.folder / "config.json", other.made)
    gaps = differences([one, Run(other.folder)])
    cohorts = {(row["settings"], row["cohorts"]) for row in gaps}
    assert cohorts == {("ours", 1), ("paper", 1)}
