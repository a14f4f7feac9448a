"""Collects runs that pool tiles end to end: how well they judge, and where they look.

    python -m benchmarks.attention_pooling_runs \
        --out benchmarks/results/attention_pooling_runs.json runs/pooled_*/

A row is one run on a practice cohort: test AUC and F1 with 95 % intervals, and, over
the tumour test slides, the difference of mean attention between tumour tiles (lesion by
half or more) and the others, its lift over an even attention, and its average precision
beside what chance gives; means over slides, 95 % by resampling them.
"""

import json
import pathlib

import numpy as np

from benchmarks import record
from benchmarks.runs import cohort_folder
from benchmarks.streaming_runs import about_cohort, on_lesions
from wsi_jax.configs import flatten
from wsi_jax.evals.attention import Found, attention_on

REPLICATES = 2000


def row(run: pathlib.Path, most: int | None) -> dict:
    """What a finished run found, and where it looked."""
    read = lambda name: json.loads((run / name).read_text())
    made, metrics, cost = read("config.json"), read("metrics.json"), read("cost.json")
    config = flatten(made["config"])
    folder = cohort_folder(made["config"]["data"])
    fields = ("normaliser", "power", "pooling", "worst", "joint")
    return {
        **about_cohort(folder),
        **{name: config.get(f"method.{name}") for name in fields},
        "n": metrics["test.n"],
        **{
            f"{name}{end}": metrics.get(f"test.{name}{end}")
            for name in ("auc", "f1")
            for end in ("", "_lo", "_hi")
        },
        **attention(run, folder, most),
        "minutes": cost["wall_s"] / 60,
        "run_commit": made["commit"],
    }


def attention(run: pathlib.Path, folder: pathlib.Path, most: int | None) -> dict:
    """Means over tumour test slides, of what `attention_on` tells of each."""
    found = [
        attention_on(looked, tumour)
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


def main() -> None:
    """Writes the JSON and prints the table."""
    parser = record.arguments(__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    chosen = parser.parse_args()
    rows = [row(run, 8 if chosen.quick else None) for run in chosen.runs]
    record.write(chosen.out, rows)
    print(record.table(rows))


if __name__ == "__main__":
    main()
