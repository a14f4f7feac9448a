"""A CLAM project as it lies: features, labels, splits, results, and pickles."""

import csv

import h5py
import numpy as np

LABELS = ("normal_tissue", "tumor_tissue")


def write_table(path, header, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *lines])


def write_bag(path, x, xy):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as f:
        f["features"], f["coords"] = x, xy
        f["coords"].attrs["patch_size"] = 256


def write_project(folder, slides=24, folds=2, d=8):
    """A tumour slide has some tiles that no other has."""
    rng = np.random.default_rng(0)
    names = [f"slide_{i:02}" for i in range(slides)]
    labels = {name: LABELS[i % 2] for i, name in enumerate(names)}
    for i, name in enumerate(names):
        n = 20 + i
        x = rng.normal(size=(n, d)).astype(np.float32)
        x[: 5 * (i % 2), 0] += 4
        xy = np.stack([256 * np.arange(n), np.full(n, 512)], 1)
        write_bag(folder / "FEATURES/h5_files" / f"{name}.h5", x, xy)
        pt = folder / "FEATURES/pt_files" / f"{name}.pt"
        pt.parent.mkdir(exist_ok=True)
        pt.write_bytes(b"a pickle")
    lines = [(f"patient_{n}", n, label) for n, label in labels.items()]
    write_table(
        folder / "dataset_csv/mine.csv", ("case_id", "slide_id", "label"), lines
    )
    splits = {}
    for k in range(folds):
        order = names[8 * k :] + names[: 8 * k]
        splits[k] = order[:12], order[12:16], order[16:]
        write_split(folder / f"splits/task_100/splits_{k}.csv", splits[k])
        write_split(folder / f"results/exp_s1/splits_{k}.csv", splits[k])
        (folder / f"results/exp_s1/split_{k}_results.pkl").write_bytes(b"a pickle")
        test = splits[k][2]
        p = [0.2 + 0.6 * (labels[n] == LABELS[1]) for n in test]
        p[0] = 1 - p[0]
        rows = [
            (n, float(labels[n] == LABELS[1]), float(q > 0.5), 1 - q, q)
            for n, q in zip(test, p, strict=True)
        ]
        header = ("slide_id", "Y", "Y_hat", "p_0", "p_1")
        write_table(folder / f"eval_results/EVAL_a/fold_{k}.csv", header, rows)
    settings = "{'task': 'task_1', 'model_type': 'clam_sb', 'drop_out': 0.25}\n"
    (folder / "eval_results/EVAL_a/eval_experiment_a.txt").write_text(settings)
    summary = [(k, k, 0.5 + 0.1 * k, 0.8) for k in range(folds)]
    header = ("", "folds", "test_auc", "test_acc")
    write_table(folder / "results/exp_s1/summary.csv", header, summary)
    return splits


def write_split(path, parts):
    longest = max(map(len, parts))
    columns = [[*part, *[""] * (longest - len(part))] for part in parts]
    lines = [(i, *row) for i, row in enumerate(zip(*columns, strict=True))]
    write_table(path, ("", "train", "val", "test"), lines)
