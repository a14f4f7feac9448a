"""Collects finished runs into one JSON: what was learnt, on what, at what cost.

python -m benchmarks.runs --out benchmarks/results/practice.json runs/demo ...
"""

import csv
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from benchmarks import record
from wsi_jax.config_io import flatten
from wsi_jax.evals.intervals import Difference, Interval

METRICS = ("n", "auc", "auc_lo", "auc_hi", "balanced_accuracy", "f1")
Z = 1.959964  # of 95 % intervals
COSTS = ("slides", "tiles", "bytes_decoded", "wall_s", "peak_host_bytes")


def row(run: pathlib.Path) -> dict:
    """One finished run in one flat row; its own commit, machine and versions in it."""
    read = lambda name: json.loads((run / name).read_text())
    metrics, cost, record = read("metrics.json"), read("cost.json"), read("config.json")
    config = flatten(record["config"])
    made = cohort(record["config"]["data"])
    with open(run / "slides.csv", newline="", encoding="utf-8") as file:
        encoded = sum(line["status"] == "encoded" for line in csv.DictReader(file))
    own = cost["slides"] >= encoded
    return {
        "run": run.name,
        "method": record["config"]["method"]["type"].rpartition(".")[2],
        "encoder": f"{config['encoder.depth']}, {_weights(config)}",
        "preset": made["preset"],
        "source": "real tiles" if made["tiles"] else "drawn",
        "mpp": config["grid.mpp"],
        "size_px": config["grid.size_px"],
        **{name: metrics[f"test.{name}"] for name in METRICS},
        # Of features that an earlier run made, this one knows no cost.
        **{name: cost[name] if own else None for name in COSTS},
        "run_commit": record["commit"],
        "run_device": record["machine"]["device"],
        "run_cpu": record["machine"]["cpu"],
        "run_jax": record["versions"]["jax"],
    }


def cohort(data: dict) -> dict:
    """The practice cohort that a run's data lies in: its cohort.json."""
    return json.loads((cohort_folder(data) / "cohort.json").read_text())["config"]


def cohort_folder(data: dict) -> pathlib.Path:
    """Where a run's data lies."""
    if "root" in data:
        return pathlib.Path(data["root"])
    return pathlib.Path(data["manifest"]).parent


def about_cohort(folder: pathlib.Path) -> dict:
    """Preset and seed; how its certificate came out, where it has one."""
    config = json.loads((folder / "cohort.json").read_text())["config"]
    found = {"preset": config["preset"], "seed": config["seed"]}
    if (certificate := folder / "certificate.json").is_file():
        rows = json.loads(certificate.read_text())["rows"]
        for kind in ("signal", "none"):
            held = [row["ok"] for row in rows if row["expected"] == kind]
            found |= {kind: len(held), f"{kind}_held": sum(held)}
    return found


def scores(run: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """(label, probability) of tumour, in the order of the slides' names."""
    with open(run / "predictions.csv", newline="", encoding="utf-8") as file:
        lines = sorted(csv.DictReader(file), key=lambda line: line["slide_id"])
    positive = np.array([line["label"] == "tumor" for line in lines])
    return positive, np.array([float(line["p_tumor"]) for line in lines])


def over_cohorts(
    found: Sequence[Interval | Difference], name: str = "auc_diff"
) -> dict[str, float]:
    """The mean of what each cohort gives, with the interval of independent cohorts."""
    value = float(np.mean([one.value for one in found]))
    errors = np.array([(one.hi - one.lo) / 2 / Z for one in found])
    half = Z * float(np.sqrt((errors**2).sum())) / len(found)
    return {
        "cohorts": len(found),
        name: value,
        f"{name}_lo": value - half,
        f"{name}_hi": value + half,
    }


def main() -> None:
    """Writes the JSON and prints the table."""
    parser = record.arguments(__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    chosen = parser.parse_args()
    rows = [row(run) for run in chosen.runs]
    record.write(chosen.out, rows)
    print(record.table(rows))


def _weights(config: dict) -> str:
    weights = config["encoder.weights"]
    return pathlib.Path(weights).stem if weights else f"random {config['encoder.seed']}"


if __name__ == "__main__":
    main()
