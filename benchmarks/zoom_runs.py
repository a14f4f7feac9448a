"""Rows of `benchmarks.runs zoom_runs`: strategies that spend as many tiles on zooming.

A row is one strategy (`way`) of one run: test AUC with its 95 % interval, and the
expected calibration error. `settings` are ours, ours with a policy that does not begin
with the ranking (cold), or those of the paper's code. `tiles_read`, on average of a
slide: all tiles at low resolution and the children of those zoomed into; the children
of all, without the tiles, at full resolution and for the oracle. A row `policy -
random` is the paired difference of AUCs at one share of the tiles, over independent
cohorts. `gap_closed` is the share of the way from random to oracle that the policy
goes, of the mean AUCs; null unless the interval of their difference is above 0.
`lesions_within_a_child` is the share of tumour test slides with less lesion, in all,
than one child covers.
"""

import pathlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from benchmarks.run_folder import Run, grouped, interval, over_cohorts
from wsi_jax.evals.intervals import delong, delong_difference
from wsi_jax.evals.metrics import calibration_error
from wsi_jax.ops.zoom_env import horizon
from wsi_jax.ops.zoom_strategies import STRATEGIES, Choice, Strategy
from wsi_jax.run.run_folder import read_csv

AGAINST = ("random", "grid", "low_attention", "ranking", "full_resolution")
# What the paper's code does otherwise, whatever the cohort.
PAPER = {
    "method.updater.signed_cosine": False,
    "method.updater.include_self": True,
    "method.policy.critic_clock": False,
    "method.policy.init_from_ranking": False,
    "method.policy.mask_visited": False,
    "method.policy.reward": "loss",
}


def zoom_runs(runs: Sequence[Run]) -> list[dict]:
    """Every strategy of every run, and what the policy gains."""
    return [row for run in runs for row in strategy_rows(run)] + differences(runs)


def settings(config: Mapping) -> str:
    """Whose they are, of a run's config."""
    if all(config.get(name, False) == value for name, value in PAPER.items()):
        return "paper"
    return "ours" if config.get("method.policy.init_from_ranking") else "ours, cold"


def tiles_of(run: Run) -> np.ndarray:
    """The low-resolution tiles of each test slide."""
    test = {line["slide_id"] for line in run.lines("predictions.csv")}
    slides = [line for line in run.lines("slides.csv") if line["slide_id"] in test]
    return np.array([int(line["tiles"]) for line in slides])


def tiles_read(n: np.ndarray, name: str, share: float, children: int) -> float:
    """Mean over slides of the tiles read by a strategy that zooms into a share.

    Args:
        n: low-resolution tiles of each slide.
        name: of the strategy.
        share: of the tiles, unless the strategy has one of its own.
        children: to a side of a tile.
    """
    strategy = STRATEGIES.get(name, Strategy())
    share = share if strategy.share is None else strategy.share
    if share == 1 or strategy.choice is Choice.full:
        return float(children**2 * n.mean())
    zooms = share and np.asarray(horizon(share, jnp.asarray(n)))
    return float((n + children**2 * zooms).mean())


def lesions_within_a_child(run: Run) -> float:
    """Share of the tumour test slides of a run's cohort."""
    config = run.config
    side_um = config["grid.mpp"] * config["grid.size_px"] / config["method.children"]
    slides = read_csv(pathlib.Path(config["data.manifest"]))
    areas = [
        float(s["lesion_um2"])
        for s in slides
        if (s["split"], s["label"]) == ("test", "tumor")
    ]
    return float(np.mean(np.array(areas) < side_um**2))


def strategy_rows(run: Run) -> list[dict]:
    """One row for each strategy."""
    share, children = run.config["method.zoom_share"], run.config["method.children"]
    about = run.cohort.about() | {"settings": settings(run.config), "share": share}
    about["lesions_within_a_child"] = lesions_within_a_child(run)
    (positive, scores), tiles = run.scores(), tiles_of(run)
    return [
        about
        | {"way": name or "policy", "n": len(positive)}
        | interval("auc", delong(positive, p))
        | {
            "calibration_error": float(
                calibration_error(positive.astype(int), np.stack([1 - p, p], -1))
            ),
            "tiles_read": tiles_read(tiles, name, share, children),
            "run_commit": run.commit,
        }
        for name, p in scores.items()
    ]


def differences(runs: Sequence[Run]) -> list[dict]:
    """The policy less other strategies: by preset, whose settings, and share."""
    abouts = [
        {
            "preset": run.cohort.config["preset"],
            "settings": settings(run.config),
            "share": run.config["method.zoom_share"],
            "scores": run.scores(),
        }
        for run in runs
    ]
    rows, names = [], ("preset", "settings", "share")
    for values, mine in grouped(abouts, *names).items():
        cohorts = [one["scores"] for one in mine]
        paired = lambda a, b, cohorts=cohorts: over_cohorts(
            [delong_difference(y, p[a], p[b]) for y, p in cohorts]
        )
        gap, about = paired("oracle", "random"), dict(zip(names, values, strict=True))
        gain, closed = paired("", "random"), None
        if gap["auc_diff_lo"] > 0:
            closed = gain["auc_diff"] / gap["auc_diff"]
        rows += [
            about
            | {"way": f"policy - {other}"}
            | paired("", other)
            | {"gap_closed": closed}
            for other in AGAINST
            if all(other in p for _, p in cohorts)
        ]
    return rows
