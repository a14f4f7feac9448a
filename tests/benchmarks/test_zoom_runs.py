"""Runs that zoom: each strategy of each run, and what the policy gains."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.special import expit

from benchmarks.run_folder import Run
from benchmarks.zoom_runs import AGAINST, differences, settings, strategy_rows
from experiments.configs import camelyon16
from experiments.configs.phantom import sasha
from wsi_jax.config_fields import flatten, to_plain
from wsi_jax.evals.intervals import delong, delong_difference

STRATEGIES = {"policy": 2.0, "random": 0.5, "oracle": 4.0, "grid": 0.4}
STRATEGIES |= {"low_attention": 1.0, "ranking": 1.5, "full_resolution": 5.0}
STRATEGIES |= {"low_resolution": 0.3}


@pytest.fixture
def runs(tmp_path):
    """Two cohorts: {run: scores by strategy}, and which slides are tumours."""
    scores, positive = {}, np.arange(60) % 2 == 1
    for seed in (1, 2):
        rng, cohort = np.random.default_rng(seed), tmp_path / f"cohort_{seed}"
        cohort.mkdir()
        about = {"config": {"preset": "needle", "seed": seed}}
        (cohort / "cohort.json").write_text(json.dumps(about))
        run = tmp_path / f"run_{seed}"
        run.mkdir()
        data = {"manifest": str(cohort / "slides.csv")}
        method = to_plain(sasha.get_config().method)
        grid = {"mpp": 4.0, "size_px": 32}  # children of 32 um
        config = {"data": data, "method": method, "grid": grid}
        areas = ["t,train,tumor,1", "s0,test,normal,0", "s1,test,tumor,1023"]
        areas += [f"s{i},test,tumor,1024" for i in (3, 5, 7)]
        names = "slide_id,split,label,lesion_um2"
        (cohort / "slides.csv").write_text("\n".join([names, *areas]))
        made = {"config": config, "commit": "c" * 40}
        (run / "config.json").write_text(json.dumps(made))
        draw = lambda shift, rng=rng: expit(rng.normal(size=60) + shift * positive)
        p = {way: draw(shift) for way, shift in STRATEGIES.items()}
        names = ["p_tumor" if way == "policy" else f"{way}.p_tumor" for way in p]
        lines = [",".join(["slide_id", "label", *names])]
        for i, label in enumerate(np.where(positive, "tumor", "normal")):
            row = (str(values[i]) for values in p.values())
            lines.append(",".join([f"s{i:03}", label, *row]))
        (run / "predictions.csv").write_text("\n".join(lines[:1] + lines[:0:-1]))
        # And a slide that was trained on.
        counts = ["slide_id,tiles", "t000,9999"]
        counts += [f"s{i:03},{100 if i % 2 else 52}" for i in range(60)]
        (run / "slides.csv").write_text("\n".join(counts))
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


def test_slides_with_less_lesion_than_a_child_are_counted(runs):
    rows = [row for run in runs[0] for row in strategy_rows(run)]
    assert {row["lesions_within_a_child"] for row in rows} == {0.25}


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
    path = one.folder / "predictions.csv"
    head, *lines = path.read_text().splitlines()
    names = head.split(",")
    at, of = names.index("oracle.p_tumor"), names.index("random.p_tumor")
    cells = [line.split(",") for line in lines]
    for line in cells:
        line[at] = line[of]
    tumours = sorted(
        (line for line in cells if line[1] == "tumor"), key=lambda x: x[of]
    )
    for line in tumours[:better]:
        line[at] = "1"
    path.write_text("\n".join([head, *map(",".join, cells)]))
    auc = {row["way"]: row["auc"] for row in strategy_rows(one)}
    assert (auc["oracle"] > auc["random"]) == bool(better)
    assert {row["gap_closed"] for row in differences([one])} == {None}


def test_a_run_has_our_settings_or_the_papers(runs):
    configs = (
        sasha.ours(),
        sasha.paper(),
        camelyon16.get_config("sasha_paper"),
    )
    assert [settings(flatten(to_plain(one))) for one in configs] == [
        "ours",
        "paper",
        "paper",
    ]
    policy = dataclasses.replace(configs[0].method.policy, init_from_ranking=False)
    cold = dataclasses.replace(configs[0].method, policy=policy)
    cold = flatten(to_plain(dataclasses.replace(configs[0], method=cold)))
    assert settings(cold) == "ours, cold"
    one, other = runs[0]
    path = other.folder / "config.json"
    made = json.loads(path.read_text())
    made["config"]["method"] = to_plain(configs[1].method)
    path.write_text(json.dumps(made))
    other = Run(other.folder)
    gaps = differences([one, other])
    assert {(row["settings"], row["cohorts"]) for row in gaps} == {
        ("ours", 1),
        ("paper", 1),
    }
