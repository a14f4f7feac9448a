"""Collects runs on practice cohorts, trunks trained or frozen; asks where they look.

    python -m benchmarks.streaming_runs --out benchmarks/results/streaming_runs.json \
        runs/*/

A row is one run: test AUC with its 95 % interval, hours, and, of a trunk that was
trained, the average precision with which attention finds cells that are lesion by half
or more, on tumour test slides (mean over slides, 95 % by resampling them), beside the
share of such cells, which is what chance gives.
"""

import csv
import json
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from sklearn.metrics import average_precision_score

import wsi_jax
from benchmarks import record
from benchmarks.runs import about_cohort, cohort_folder
from experiments.phantoms.synthetic import LESION
from wsi_jax.config_io import flatten
from wsi_jax.slides.slide import open_slide

REPLICATES = 2000


def row(run: pathlib.Path, most: int | None) -> dict:
    """What a finished run found, and where it looked."""
    read = lambda name: json.loads((run / name).read_text())
    made, metrics, cost = read("config.json"), read("metrics.json"), read("cost.json")
    config = flatten(made["config"])
    folder = cohort_folder(made["config"]["data"])
    steps, batch = config["train.steps"], config["train.batch"]
    streams = "method.trunk.weights" in config
    weights = config["method.trunk.weights" if streams else "encoder.weights"]
    frozen = not streams or config["method.thaw.frozen"] >= steps
    n_train = sum(one["split"] == "train" for one in _lines(run / "manifest.csv"))
    found = about_cohort(folder) | {
        "learner": "frozen" if frozen else "end to end",
        "trunk": "pre-trained" if weights else "random",
        "mpp": config["grid.mpp"],
        "seed_of_weights": config["train.seed"],
        "n_train": n_train,
        "epochs": steps * batch / n_train,
        "n": metrics["test.n"],
        **{name: metrics[f"test.{name}"] for name in ("auc", "auc_lo", "auc_hi")},
        "hours": cost["wall_s"] / 3600,
        "run_commit": made["commit"],
    }
    return found | (attention(run, folder, most) if streams else {})


def attention(run: pathlib.Path, folder: pathlib.Path, most: int | None) -> dict:
    """Average precision of attention on the lesions of tumour test slides."""
    precisions, shares = [], []
    for looked, lesion in on_lesions(run, folder, most):
        if lesion.any():
            precisions.append(average_precision_score(lesion, looked))
            shares.append(lesion.mean())
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(precisions), (REPLICATES, len(precisions)))
    low, high = np.percentile(np.array(precisions)[drawn].mean(1), [2.5, 97.5])
    return {
        "slides_with_lesions": len(precisions),
        "auprc": float(np.mean(precisions)),
        "auprc_lo": float(low),
        "auprc_hi": float(high),
        "auprc_chance": float(np.mean(shares)),
    }


def on_lesions(
    run: pathlib.Path, folder: pathlib.Path, most: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Attention [n] on tumour test slides, and which cells are lesion by half [n]."""
    predictor = wsi_jax.load(run)
    slides = [one for one in _lines(run / "manifest.csv") if one["split"] == "test"]
    for one in [one for one in slides if one["label"] == "tumor"][:most]:
        path = pathlib.Path(one["path"])
        path = path if path.is_absolute() else run / path
        verdict = predictor.predict(path, float(one["mpp"]) if one["mpp"] else None)
        mask = folder / "masks" / f"{one['slide_id']}_mask.png"
        yield verdict.attention, lesion_share(mask, verdict) >= 0.5


def lesion_share(mask: pathlib.Path, verdict) -> np.ndarray:
    """Of each cell [n], how much is lesion."""
    with Image.open(mask) as image:
        lesion = np.asarray(image) == LESION
    with open_slide(verdict.path, verdict.mpp) as slide:
        scale = np.array(lesion.shape) / slide.shape
    start = np.floor(verdict.yx * scale).astype(int)
    stop = np.ceil((verdict.yx + verdict.tile_px) * scale).astype(int)
    boxes = zip(start, stop, strict=True)
    return np.array([lesion[y:v, x:w].mean() for (y, x), (v, w) in boxes])


def _lines(path: pathlib.Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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
