"""Collects pre-trained tile encoders: accuracy beside a logistic regression.

    python -m benchmarks.tile_encoders --out benchmarks/results/tile_encoders.json \
        runs/lc25000 runs/phantom

A row is one group of classes that one encoder was judged on, on test tiles of clusters
that it has not seen, with 95 % intervals by cluster. The opponent sees colours and
gradients of the same tiles.
"""

import json
import pathlib

from benchmarks import record
from wsi_jax.config_fields import flatten

KNOWN = ("n", "n_clusters")
JUDGED = ("accuracy", "baseline_accuracy", "difference")


def rows(run: pathlib.Path) -> list[dict]:
    """Of one finished run, a row for each of its groups."""
    read = lambda name: json.loads((run / name).read_text())
    metrics, made = read("metrics.json"), read("config.json")
    config = flatten(made["config"])
    about = {
        "run": run.name,
        "encoder": config["method.encoder.depth"],
        "width": config["method.encoder.width"],
        "mpp": config["mpp"],
        "steps": config["train.steps"],
        "run_commit": made["commit"],
    }
    groups = [name.removesuffix(".n") for name in metrics if name.endswith(".n")]
    ends = [f"{name}{end}" for name in JUDGED for end in ("", "_lo", "_hi")]
    return [
        about
        | {"group": group.removeprefix("test.")}
        | {name: metrics[f"{group}.{name}"] for name in (*KNOWN, *ends)}
        for group in groups
    ]


def main() -> None:
    """Writes the JSON and prints the table."""
    parser = record.arguments(__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    chosen = parser.parse_args()
    collected = [row for run in chosen.runs for row in rows(run)]
    record.write(chosen.out, collected)
    print(record.table(collected))


if __name__ == "__main__":
    main()
