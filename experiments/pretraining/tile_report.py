"""What is written of the verdicts on test tiles, and what is shown."""

import pathlib

import numpy as np

from experiments.pretraining.baseline import baseline, compare, name_of, only
from experiments.pretraining.tile_sets import TileSets
from wsi_jax.report import tables
from wsi_jax.run.config import write_csv

SHOWN = {
    "accuracy": "encoder",
    "baseline_accuracy": "colours and gradients",
    "difference": "difference",
    "beside_accuracy": "the encoder beside",
    "beside_difference": "difference to it",
}


def evaluate(
    sets: TileSets, p: np.ndarray, q: np.ndarray | None, groups, seed: int
) -> dict[str, float]:
    """Each group's accuracy on the test tiles beside that of the baseline.

    And beside that of another encoder, where its probabilities `q` are given.
    """
    metrics = {}
    for group in groups:
        index = [sets.classes.index(name) for name in group]
        mine = np.isin(sets.test.label, index)
        part = only(sets, group)
        within = lambda every, mine=mine, index=index: every[mine][:, index]
        found = compare(part.test, within(p), baseline(part), seed)
        if q is not None:
            other = compare(part.test, within(p), within(q), seed)
            new = lambda name: f"beside_{name.removeprefix('baseline_')}"
            about = ("baseline_accuracy", "difference")
            found |= {new(k): v for k, v in other.items() if k.startswith(about)}
        metrics |= {f"test.{name_of(group)}.{k}": v for k, v in found.items()}
    return metrics


def write_predictions(path: pathlib.Path, sets: TileSets, p: np.ndarray) -> None:
    """One line a test tile: what it is, what it is called, each class's probability."""
    tiles, classes = sets.test, sets.classes
    lines = []
    for i, name in enumerate(tiles.name):
        who = {"file": name, "cluster": tiles.cluster[i]}
        said = {"label": classes[tiles.label[i]], "prediction": classes[p[i].argmax()]}
        each = {f"p_{c}": f"{v:.6f}" for c, v in zip(classes, p[i], strict=True)}
        lines.append(who | said | each)
    write_csv(path, lines)


def text(metrics: dict[str, float]) -> str:
    """The groups' accuracies in a few lines of plain text."""
    lines = ["accuracy on test tiles, 95 % intervals by cluster"]
    for group in [name.removesuffix(".n") for name in metrics if name.endswith(".n")]:
        shown = [name for name in SHOWN if f"{group}.{name}" in metrics]
        of = {name: tables.interval(metrics, f"{group}.{name}") for name in shown}
        lines.append(f"  {group.removeprefix('test.')}")
        lines += [f"    {SHOWN[name]:<22} {value}" for name, value in of.items()]
    return "\n".join(lines) + "\n"
