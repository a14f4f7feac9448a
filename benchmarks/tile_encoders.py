"""Collects pre-trained tile encoders: accuracy beside a logistic regression.

    python -m benchmarks.tile_encoders --out benchmarks/results/tile_encoders.json \
        runs/lc25000 runs/phantom

A row is one group of classes that one encoder was judged on, on test tiles of clusters
that it has not seen, with 95 % intervals by cluster. The opponent sees colours and
gradients of the same tiles.
"""

import argparse
import itertools
import pathlib
from collections.abc import Iterator

from benchmarks import record
from benchmarks.run_folder import Run

ENDS = itertools.product(
    ("accuracy", "baseline_accuracy", "difference"), ("", "_lo", "_hi")
)
COLUMNS = ("n", "n_clusters", *map("".join, ENDS))


def rows_of(run: Run) -> Iterator[dict]:
    """A row for each of a run's groups of classes."""
    about = {
        "run": run.folder.name,
        "encoder": run.config["method.encoder.depth"],
        "width": run.config["method.encoder.width"],
        "mpp": run.config["mpp"],
        "steps": run.config["train.steps"],
        "run_commit": run.commit,
    }
    for group in [name.removesuffix(".n") for name in run.test if name.endswith(".n")]:
        values = {name: run.test[f"{group}.{name}"] for name in COLUMNS}
        yield about | {"group": group} | values


def rows(args: argparse.Namespace) -> Iterator[dict]:
    """The groups of every run."""
    return (row for folder in args.runs for row in rows_of(Run(folder)))


if __name__ == "__main__":
    record.main(__doc__, rows, {"runs": {"nargs": "+", "type": pathlib.Path}})
