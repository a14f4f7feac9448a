"""Collects finished runs into one JSON: what was learnt, on what, at what cost.

python -m benchmarks.runs --out benchmarks/results/practice.json runs/demo ...
"""

import csv
import json
import pathlib

from benchmarks import record
from wsi_jax.configs import flatten

METRICS = ("n", "auc", "auc_lo", "auc_hi", "balanced_accuracy", "f1")
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
