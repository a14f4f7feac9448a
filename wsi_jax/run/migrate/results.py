"""Results that another tool has written beside its models, and ours held against them.

eval_results/EVAL_x/fold_0.csv    slide_id,Y,Y_hat,p_0,p_1
eval_results/EVAL_x/summary.csv   folds,test_auc,test_acc
eval_experiment_x.txt             a dict that has model_type
"""

import ast
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wsi_jax.data.cohort import Cohort
from wsi_jax.data.csv_table import CohortError, read_table
from wsi_jax.evals.intervals import quantile
from wsi_jax.run.compare_runs import area, auc_difference
from wsi_jax.slides.slide_id import slide_id_of

FOLD_FILE = re.compile(r"fold_(\d+)\.csv")
Slides = Mapping[str, np.ndarray]  # probabilities [c] by slide


class Results(NamedTuple):
    """Results of one experiment of another tool.

    Attributes:
        name: its folder.
        model: its model, "clam_sb"; "" where that is written nowhere.
        slides: probabilities of the test slides, by fold.
        aucs: test AUC, by fold.
    """

    name: str
    model: str
    slides: dict[int, Slides]
    aucs: dict[int, float]


class Comparison(NamedTuple):
    """Two mean AUCs, and ours less theirs with its interval and how it was made."""

    theirs: float
    ours: float
    difference: float
    lo: float
    hi: float
    note: str


def read_results(
    folder: pathlib.Path, files: Sequence[pathlib.Path], cohort: Cohort
) -> tuple[list[Results], list[pathlib.Path]]:
    """Results below a folder, and the files that they are from."""
    by_folder: dict[pathlib.Path, Results] = {}
    read = []
    for path in files:
        match, name = FOLD_FILE.fullmatch(path.name), str(path.parent)
        if not match and path.name != "summary.csv":
            continue
        one = by_folder.get(path.parent) or Results(name, _model(path.parent), {}, {})
        try:
            _, lines = read_table(path)
            if match:
                one.slides[int(match[1])] = _probabilities(lines, cohort)
            else:
                pairs = [(int(c["folds"]), float(c["test_auc"])) for _, c in lines]
                one.aucs.update(pairs)
        except (CohortError, KeyError, ValueError):
            continue  # listed with all that is not understood
        by_folder[path.parent] = one
        read.append(path)
    return list(by_folder.values()), read


def compare(
    theirs: Results, ours: Mapping[int, Slides], cohort: Cohort
) -> Comparison | None:
    """Ours less theirs, on the slides or else the folds that both have.

    By slides: AUC within folds, with DeLong's paired interval, or of several classes a
    bootstrap's, patients apart. By folds: an interval of t over the folds' differences,
    too narrow where folds share slides.

    Args:
        theirs: their results.
        ours: probabilities of the test slides, by fold.
        cohort: all slides.
    """
    keys = [(k, n) for k in ours for n in ours[k] if n in theirs.slides.get(k, {})]
    if keys:
        return _by_slides(theirs.slides, ours, keys, cohort)
    areas = {k: mean_auc({k: own}, cohort) for k, own in ours.items()}
    # Their slides of a fold, none of which we test, are of another split, and so is the
    # AUC beside them, whatever its column is called.
    folds = [k for k in areas if k in theirs.aucs and k not in theirs.slides]
    folds = [k for k in folds if np.isfinite([areas[k], theirs.aucs[k]]).all()]
    if not folds:
        return None
    a, b = np.array([(areas[k], theirs.aucs[k]) for k in folds]).T
    gap, n = a - b, len(folds)
    half = quantile(n - 1) * gap.std(ddof=1) / n**0.5 if n > 1 else np.nan
    ends = gap.mean() - half, gap.mean() + half
    return Comparison(
        b.mean(), a.mean(), gap.mean(), *ends, f"by {n} fold{'s' * (n > 1)}"
    )


def mean_auc(slides: Mapping[int, Slides], cohort: Cohort) -> float:
    """AUC within folds; of several classes the mean of each against the rest."""
    keys = [(k, name) for k in slides for name in slides[k]]
    labels, groups, _ = _labels(keys, cohort)
    p = np.stack([slides[k][name] for k, name in keys])
    return float(area(labels, p, None, groups))


def _by_slides(theirs, ours, keys, cohort) -> Comparison:
    labels, groups, patients = _labels(keys, cohort)
    a, b = (np.stack([part[k][name] for k, name in keys]) for part in (ours, theirs))
    means = [float(area(labels, p, None, groups)) for p in (b, a)]
    gap = auc_difference(labels, (a, b), patients, groups)
    ends = gap.value, gap.lo, gap.hi
    return Comparison(*means, *ends, f"by {len(keys)} slides")


def _labels(keys, cohort):
    """Class index, fold and patient of each (fold, slide)."""
    rows = {row.slide_id: row for row in cohort.rows}
    labels = np.array([cohort.classes.index(rows[name].label) for _, name in keys])
    folds = np.array([k for k, _ in keys])
    return labels, folds, np.array([rows[name].patient_id for _, name in keys])


def _probabilities(lines, cohort: Cohort) -> Slides:
    """Probabilities in our order of classes; theirs follows from the labels, Y.

    Raises:
        ValueError: a Y stands for two labels, or a label for two Y; or a probability
            is not a number.
    """
    label_of = {row.slide_id: row.label for row in cohort.rows}
    rows = [(slide_id_of(cell["slide_id"]), cell) for _, cell in lines]
    pairs = {(label_of[n], int(float(c["y"]))) for n, c in rows if n in label_of}
    theirs = dict(pairs)
    if not len(pairs) == len(theirs) == len(set(theirs.values())):
        raise ValueError("Y does not stand for the labels")
    # A class of which the fold tests no slide has the index that is left over.
    left = [i for i in range(len(cohort.classes)) if i not in theirs.values()]
    if len(left) > 1:
        raise ValueError("it is not clear which Y stands for which label")
    order = [theirs[c] if c in theirs else left.pop(0) for c in cohort.classes]
    slides = {
        name: np.array([float(cell[f"p_{i}"]) for i in order])
        for name, cell in rows
        if name in label_of
    }
    if not np.isfinite(list(slides.values())).all():
        raise ValueError("a probability is not a number")
    return slides


def _model(folder: pathlib.Path) -> str:
    """The model's name in the settings beside results; "" where there are none."""
    for path in sorted(folder.glob("*experiment_*.txt")):
        try:
            return str(ast.literal_eval(path.read_text()).get("model_type", ""))
        except (ValueError, SyntaxError, AttributeError, OSError, RecursionError):
            continue
    return ""
