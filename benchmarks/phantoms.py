"""Collects runs on phantom cohorts: methods beside what needs no look at the detail.

    python -m benchmarks.phantoms --out benchmarks/results/phantoms.json runs/*/

A row is one learner on one cohort: test AUC with its 95 % interval. Opponents come from
the cohort's own certificate: an overview (statistics of fields at 8 times the tiles'
um/px, pooled over the slide), metadata (bytes, sizes, mean colour) and the majority,
which ranks nothing. Of the certificate's rows `signal_held` of `signal` and
`none_held` of `none` hold, those that ask for a signal and those that allow none.
"""

import csv
import json
import pathlib

from benchmarks import record
from benchmarks.runs import about_cohort, cohort_folder
from wsi_jax.nets.weights_metadata import read_origin

OVERVIEW = 8


def method_row(run: pathlib.Path) -> dict:
    """What a finished run found."""
    read = lambda name: json.loads((run / name).read_text())
    record, metrics = read("config.json"), read("metrics.json")
    config = record["config"]
    who = config["method"]["type"].rpartition(".")[2]
    weights = config["encoder"]["weights"]
    origin = read_origin(weights) if weights else None
    if origin and origin.made["config"]["method"]["encoder"]["weights"]:
        who += ", encoder trained again"  # from weights of the same config
    auc = {name: metrics[f"test.{name}"] for name in ("auc", "auc_lo", "auc_hi")}
    with open(run / "slides.csv", newline="", encoding="utf-8") as file:
        slides = list(csv.DictReader(file))
    sides = [int(slide[name]) for slide in slides for name in ("height", "width")]
    return {
        "learner": who,
        **auc,
        "n": metrics["test.n"],
        "slides": len(slides),
        "least_side_px": min(sides),
        "largest_side_px": max(sides),
        "run_commit": record["commit"],
    }


def opponents(folder: pathlib.Path) -> list[dict]:
    """What stands in a cohort's certificate."""
    rows = json.loads((folder / "certificate.json").read_text())["rows"]
    mpp = json.loads((folder / "cohort.json").read_text())["config"]["mpp"]
    pick = lambda probe, mpp: next(
        r for r in rows if r["probe"] == probe and r["mpp"] == mpp
    )
    found = {
        "overview": pick("slide, fields pooled", OVERVIEW * mpp),
        "metadata": pick("metadata only", None),
    }
    said = [
        {"learner": name, "auc": r["auc"], "auc_lo": r["lo"], "auc_hi": r["hi"]}
        | {"n": r["slides"]}
        for name, r in found.items()
    ]
    n = said[0]["n"]
    return [
        *said,
        {"learner": "majority", "auc": 0.5, "auc_lo": 0.5, "auc_hi": 0.5, "n": n},
    ]


def main() -> None:
    """Writes the JSON and prints the table."""
    parser = record.arguments(__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    chosen = parser.parse_args()
    by_cohort = {}
    for run in chosen.runs:
        data = json.loads((run / "config.json").read_text())["config"]["data"]
        by_cohort.setdefault(cohort_folder(data), []).append(run)
    rows = [
        about_cohort(folder) | row
        for folder, runs in by_cohort.items()
        for row in (*map(method_row, runs), *opponents(folder))
    ]
    record.write(chosen.out, rows)
    print(record.table(rows))


if __name__ == "__main__":
    main()
