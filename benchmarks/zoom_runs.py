"""Collects runs that zoom, beside every other way to spend as many tiles.

    python -m benchmarks.zoom_runs --out benchmarks/results/zoom_runs.json runs/zoom_*

A row is one way of one run: test AUC with its 95 % interval, and the expected
calibration error. `settings` are ours, ours with a policy that begins with nothing and
learns at a rate of its own (cold), or those that the paper's code has. `tiles_read` is
what the way must read of a slide, on average: all tiles at low resolution and the
children of those zoomed into; the children of all, without the tiles, at full
resolution, and for the oracle, who must have seen them to choose. A row `policy -
random` is the paired difference of AUCs at one share of the tiles, over all cohorts:
the mean of theirs, with the interval of independent cohorts. `gap_closed` is the share
of the way from random to oracle that the policy goes, of the mean AUCs; null where it
is not certain that the oracle is better: where the interval of their difference covers
nought. `lesions_within_a_child` is the share of tumour test slides with less lesion, in
all, than one child covers.
"""

import csv
import json
import pathlib

import jax.numpy as jnp
import numpy as np

from benchmarks import record
from benchmarks.runs import about_cohort, cohort_folder, over_cohorts
from wsi_jax.config_io import flatten
from wsi_jax.evals.calibration import calibration_error
from wsi_jax.evals.intervals import delong, delong_difference
from wsi_jax.ops.zoom_env import horizon
from wsi_jax.ops.zoom_strategies import STRATEGIES, Choice, Strategy

AGAINST = ("random", "grid", "low_attention", "ranking", "full_resolution")
# What the paper's code does otherwise, whatever the cohort.
PAPER = {
    "method.signed": False,
    "method.itself": True,
    "method.clock": False,
    "method.warm": False,
    "method.ppo.masked": False,
    "method.ppo.reward": "loss",
}


def scores(run: pathlib.Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Which slides are tumours, and by each way the probability that they are."""
    with open(run / "predictions.csv", newline="", encoding="utf-8") as file:
        lines = sorted(csv.DictReader(file), key=lambda line: line["slide_id"])
    end = ".p_tumor"
    names = [name.removesuffix(end) for name in lines[0] if name.endswith(end)]
    by = {"policy": "p_tumor"} | {name: name + end for name in names}
    column = lambda name: np.array([float(line[name]) for line in lines])
    positive = np.array([line["label"] == "tumor" for line in lines])
    return positive, {name: column(of) for name, of in by.items()}


def settings(config: dict) -> str:
    """Whose they are, of a run's config as `config.json` has it."""
    told = flatten(config)
    if all(told.get(name, False) == value for name, value in PAPER.items()):
        return "paper"
    return "ours" if told.get("method.warm") else "ours, cold"


def tiles_of(run: pathlib.Path) -> np.ndarray:
    """Of each test slide, at low resolution."""
    table = lambda name: csv.DictReader((run / name).read_text().splitlines())
    test = {line["slide_id"] for line in table("predictions.csv")}
    found = [line for line in table("slides.csv") if line["slide_id"] in test]
    return np.array([int(line["tiles"]) for line in found])


def tiles_read(n: np.ndarray, way: str, share: float, children: int) -> float:
    """Mean over slides of so many tiles, by a way to zoom into a share."""
    way = STRATEGIES.get(way, Strategy())
    share = share if way.share is None else way.share
    if share == 1 or way.choice is Choice.full:
        return float(children**2 * n.mean())
    zooms = share and np.asarray(horizon(share, jnp.asarray(n)))
    return float((n + children**2 * zooms).mean())


def lesions_within_a_child(config: dict) -> float:
    """Share of the tumour test slides of a run's cohort."""
    told = flatten(config)
    side_um = told["grid.mpp"] * told["grid.size_px"] / told["method.children"]
    with open(config["data"]["manifest"], newline="", encoding="utf-8") as file:
        slides = [r for r in csv.DictReader(file) if r["split"] == "test"]
    areas = [float(r["lesion_um2"]) for r in slides if r["label"] == "tumor"]
    return float(np.mean(np.array(areas) < side_um**2))


def rows_of(run: pathlib.Path) -> list[dict]:
    """One row for each way."""
    made = json.loads((run / "config.json").read_text())
    about = about_cohort(cohort_folder(made["config"]["data"]))
    told = flatten(made["config"])
    share, children = told["method.share"], told["method.children"]
    about |= {"settings": settings(made["config"]), "share": share}
    about |= {"lesions_within_a_child": lesions_within_a_child(made["config"])}
    (positive, by), tiles = scores(run), tiles_of(run)
    found = []
    for way, p in by.items():
        auc = delong(positive, p)
        error = calibration_error(positive.astype(int), np.stack([1 - p, p], -1))
        found.append(
            about
            | {"way": way, "n": len(positive)}
            | {"auc": auc.value, "auc_lo": auc.lo, "auc_hi": auc.hi}
            | {"calibration_error": float(error)}
            | {"tiles_read": tiles_read(tiles, way, share, children)}
            | {"run_commit": made["commit"]}
        )
    return found


def differences(runs: list[pathlib.Path]) -> list[dict]:
    """The policy less other ways: on each preset, by whose settings, at each share."""
    groups = {}
    for run in runs:
        first = rows_of(run)[0]
        group = tuple(first[name] for name in ("preset", "settings", "share"))
        groups.setdefault(group, []).append(scores(run))
    found = []
    for (preset, whose, share), several in groups.items():
        mean = {
            way: np.mean([delong(positive, by[way]).value for positive, by in several])
            for way in several[0][1]
            if all(way in by for _, by in several)
        }
        gap, gain = (mean[way] - mean["random"] for way in ("oracle", "policy"))
        sure = over_cohorts(
            [delong_difference(y, by["oracle"], by["random"]) for y, by in several]
        )
        for other in (way for way in AGAINST if way in mean):
            gaps = [delong_difference(y, by["policy"], by[other]) for y, by in several]
            found.append({
                "preset": preset,
                "settings": whose,
                "share": share,
                "way": f"policy - {other}",
                **over_cohorts(gaps),
                "gap_closed": float(gain / gap) if sure["auc_diff_lo"] > 0 else None,
            })  # fmt: skip
    return found


def main() -> None:
    """Writes the JSON and prints the table."""
    parser = record.arguments(__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    chosen = parser.parse_args()
    rows = [row for run in chosen.runs for row in rows_of(run)]
    rows += differences(chosen.runs)
    record.write(chosen.out, rows)
    print(record.table(rows))


if __name__ == "__main__":
    main()
