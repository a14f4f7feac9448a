"""Collects runs that pool tiles end to end: how well they judge, and where they look.

    python -m benchmarks.attention_pooling_runs \
        --out benchmarks/results/attention_pooling_runs.json runs/pooled_*/

Runs that differ in what the judge does may share a scorer: one's folder `scorer`, put
into another's before it begins, is taken as it is.

A row is one run on a practice cohort: test AUC and F1 with 95 % intervals, and, over
the tumour test slides, the difference of mean attention between tumour tiles (lesion by
half or more) and the others, its lift over an even attention, and its average precision
beside what chance gives; means over slides, 95 % by resampling them. Of each cohort the
power that validation likes best (least log loss) stands once more, as `tuned`. A row
with `seeds` is the mean over cohorts, with the interval of independent ones; a row
`joint - two-stage` the paired difference of AUCs on the cohorts that have both.

`--known FILE` takes over the runs of an earlier record that are not given again.
"""

import json
import pathlib

import numpy as np

from benchmarks import record
from benchmarks.runs import about_cohort, cohort_folder, over_cohorts, scores
from benchmarks.streaming_runs import on_lesions
from wsi_jax.config_io import flatten
from wsi_jax.evals.attention import Found, localisation_metrics
from wsi_jax.evals.intervals import delong_difference

REPLICATES = 2000
TUNED, JOINT = "power, tuned", ", joint"
HELD = "signal", "signal_held", "none", "none_held"
MEASURES = "auc", "f1", *Found._fields


def row(run: pathlib.Path, most: int | None) -> dict:
    """What a finished run found, and where it looked."""
    read = lambda name: json.loads((run / name).read_text())
    made, metrics, cost = read("config.json"), read("metrics.json"), read("cost.json")
    config = flatten(made["config"])
    folder = cohort_folder(made["config"]["data"])
    fields = ("normaliser", "power", "pooling", "worst", "joint")
    return {
        **about_cohort(folder),
        "weights": called(config),
        **{name: config.get(f"method.{name}") for name in fields},
        "n": metrics["test.n"],
        **{
            f"{name}{end}": metrics.get(f"test.{name}{end}")
            for name in ("auc", "f1")
            for end in ("", "_lo", "_hi")
        },
        **attention(run, folder, most),
        "val_log_loss": validated(run),
        "minutes": cost["wall_s"] / 60,
        "run_commit": made["commit"],
    }


def attention(run: pathlib.Path, folder: pathlib.Path, most: int | None) -> dict:
    """Means over tumour test slides, of what `localisation_metrics` tells of each."""
    found = [
        localisation_metrics(looked, tumour)
        for looked, tumour in on_lesions(run, folder, most)
        if tumour.any() and not tumour.all()
    ]
    values = np.array(found)
    drawn = np.random.default_rng(0).integers(0, len(values), (REPLICATES, len(values)))
    low, high = np.percentile(values[drawn].mean(1), [2.5, 97.5], axis=0)
    told = {"slides_with_lesions": len(values)}
    for i, name in enumerate(Found._fields):
        told[name] = float(values[:, i].mean())
        told |= {f"{name}_lo": float(low[i]), f"{name}_hi": float(high[i])}
    return told


def called(config: dict) -> str:
    """What became of the tiles' scores, in a few words."""
    if config["method.pooling"] == "max":
        return "max"
    name, power = config["method.normaliser"], config["method.power"]
    said = name.replace("_", " ")
    said = f"power {power:g}" if said == "squared average" and power != 2 else said
    return said + JOINT if config["method.joint"] else said


def validated(run: pathlib.Path) -> float:
    """The least log loss on validation slides, for which the parameters were kept."""
    stages = (run / name / "metrics.jsonl" for name in ("judge", "joint"))
    (log,) = (path for path in stages if path.is_file())
    looks = [json.loads(line) for line in log.read_text().splitlines()]
    return min(look["val.log_loss"] for look in looks if "val.log_loss" in look)


def tuned(rows: list[dict]) -> list[dict]:
    """Of each cohort on which powers were tried, that which validation likes best."""
    found = []
    powers = [r for r in rows if r["weights"].startswith(("squared", "power"))]
    powers = [r for r in powers if not r["joint"]]
    for cohort in dict.fromkeys((r["preset"], r["seed"]) for r in powers):
        mine = [r for r in powers if (r["preset"], r["seed"]) == cohort]
        if len(mine) > 1:
            best = min(mine, key=lambda r: r["val_log_loss"])
            found.append(best | {"weights": TUNED})
    return found


def means(rows: list[dict]) -> list[dict]:
    """Over the cohorts of a preset, of each way to weigh."""
    found = []
    for preset, weights in dict.fromkeys((r["preset"], r["weights"]) for r in rows):
        mine = [r for r in rows if (r["preset"], r["weights"]) == (preset, weights)]
        row = {"preset": preset, "weights": weights}
        row |= {"seeds": len(mine), "n": sum(r["n"] for r in mine)}
        for name in MEASURES:
            value = float(np.mean([r[name] for r in mine]))
            half = [
                [r[name] - r[f"{name}_lo"], r[f"{name}_hi"] - r[name]] for r in mine
            ]
            below, above = np.sqrt((np.array(half) ** 2).sum(0)) / len(mine)
            row[name] = value
            row |= {f"{name}_lo": value - below, f"{name}_hi": value + above}
        found.append(row)
    return found


def differences(runs: dict[pathlib.Path, dict]) -> list[dict]:
    """Joint training less scorer and judge in turn, on each preset."""
    by = {(r["preset"], r["seed"], r["weights"]): run for run, r in runs.items()}
    gaps = {}
    for (preset, seed, weights), run in by.items():
        against = by.get((preset, seed, weights.removesuffix(JOINT)))
        if weights.endswith(JOINT) and against:
            positive, ours = scores(run)
            gap = delong_difference(positive, ours, scores(against)[1])
            gaps.setdefault(preset, []).append(gap)
    said = {"weights": "joint - two-stage"}
    return [{"preset": p} | said | over_cohorts(several) for p, several in gaps.items()]


def known(report: dict, rows: list[dict]) -> list[dict]:
    """Runs of an earlier record that are not among `rows`, certified as those are."""
    which = lambda r: (r["preset"], r["seed"], r["weights"])
    certified = {(r["preset"], r["seed"]): {k: r[k] for k in HELD if k in r}
                 for r in rows}  # fmt: skip
    old = [r for r in report["rows"] if "run_commit" in r and r["weights"] != TUNED]
    return [
        r | certified.get((r["preset"], r["seed"]), {})
        for r in old
        if which(r) not in set(map(which, rows))
    ]


def main() -> None:
    """Writes the JSON and prints the table."""
    parser = record.arguments(__doc__)
    parser.add_argument("--known", type=pathlib.Path, help="an earlier record")
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    chosen = parser.parse_args()
    runs = {run: row(run, 8 if chosen.quick else None) for run in chosen.runs}
    rows = [*runs.values()]
    if chosen.known:
        rows += known(json.loads(chosen.known.read_text()), rows)
    rows += tuned(rows)
    rows += means(rows)
    rows += differences(runs)
    record.write(chosen.out, rows)
    print(record.table(rows))


if __name__ == "__main__":
    main()
