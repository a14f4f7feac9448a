"""Trains ABMIL and CLAM-SB on a CLAM or TRIDENT project, and compares with its results.

Same features, same labels, same folds. Nothing is written into the project's folder.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from wsi_jax.data.bags import Loading
from wsi_jax.data.cohort import Cohort, CohortError, write_manifest
from wsi_jax.methods.mil import ABMIL, CLAM
from wsi_jax.run.checks import check_cohort
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.run.migrate.export import export_fold
from wsi_jax.run.migrate.project import Options, Project, counts, read_project
from wsi_jax.run.migrate.results import Comparison, compare, mean_auc
from wsi_jax.run.run_experiment import run
from wsi_jax.run.run_folder import RunError, read_csv, write_csv
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser

METHODS = {"abmil": ABMIL, "clam_sb": CLAM}
COLUMNS = ("method", "folds", "theirs", "ours", "difference", "by", "whose")


def migrate(
    folder: pathlib.Path,
    out: pathlib.Path,
    options: Options,
    *,
    steps: int,
    export: bool,
) -> list[dict[str, str]]:
    """Trains both methods on each fold, or goes on where it was stopped.

    Args:
        folder: the project.
        out: folder of the runs, and of comparison.csv.
        options: what to take of the project.
        steps: batches of each training.
        export: whether attention and weights are written in CLAM's forms, too.

    Returns:
        The lines of comparison.csv.

    Raises:
        ValueError: the project cannot be understood, or no fold can be trained on.
    """
    options = dataclasses.replace(options, out=str(out))
    project = read_project(folder, options)
    folds = _sound_folds(project)
    for note in project.notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    print(f"features: {project.features}\nclasses: {', '.join(project.classes)}")
    for k, fold in folds.items():
        print(f"fold {k}: {counts(fold)}", flush=True)
    ours: dict[str, dict[int, Mapping]] = {name: {} for name in METHODS}
    for k, fold in folds.items():
        manifest = out / f"fold_{k}.csv"
        out.mkdir(parents=True, exist_ok=True)
        write_manifest(manifest, fold)
        for name, method in METHODS.items():
            config = experiment(method(), manifest, project, steps)
            config.max_refused = options.max_refused
            where = out / name / f"fold_{k}"
            run(config, where)
            ours[name][k] = _predictions(where, project.classes)
            if export:
                export_fold(where, config, out / "export" / name / f"fold_{k}")
    everything = next(iter(folds.values()))._replace(
        rows=tuple({r.slide_id: r for f in folds.values() for r in f.rows}.values())
    )
    lines = [
        line
        for name, slides in ours.items()
        for line in comparisons(name, slides, project, everything)
    ]
    write_csv(out / "comparison.csv", lines)
    return lines


def experiment(
    method: Any, manifest: pathlib.Path, project: Project, steps: int
) -> Experiment:
    """A training on features that are there: minutes on a laptop for each fold."""
    devices = jax.device_count()
    return Experiment(
        data=Manifest(manifest=str(manifest), classes=project.classes),
        precomputed=str(project.features),
        method=method,
        loading=Loading(max_tiles=512),
        train=Train(
            steps=steps,
            batch=-(-4 // devices) * devices,
            balanced=True,
            class_weights=False,
            validate_every=min(25, steps),
            save_every=min(50, steps),
            optimiser=Optimiser(learning_rate=3e-4, weight_decay=1e-5),
        ),
        heatmaps=0,
    )


def comparisons(
    name: str, slides: Mapping[int, Mapping], project: Project, cohort: Cohort
) -> list[dict[str, str]]:
    """A line for each of their results by the same model; one without, if none is."""
    own = {"method": name, "folds": str(len(slides))}
    lines = []
    for theirs in project.results:
        if theirs.model in ("", name) and (gap := compare(theirs, slides, cohort)):
            model = theirs.model or "model unknown"
            lines.append(own | _cells(gap) | {"whose": f"{theirs.name} ({model})"})
    if not lines:
        mean = mean_auc(slides, cohort)
        cells = dict.fromkeys(COLUMNS, "") | own | {"ours": f"{mean:.3f}"}
        return [cells | {"whose": f"no results of {name} in the project"}]
    return [{column: line[column] for column in COLUMNS} for line in lines]


def table(lines: list[dict[str, str]]) -> str:
    """The lines of comparison.csv as a text table."""
    rows = [COLUMNS, *([line[name] for name in COLUMNS] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
        for r in rows
    )


def _cells(gap: Comparison) -> dict[str, str]:
    ends = "no interval from one fold"
    if np.isfinite([gap.lo, gap.hi]).all():
        ends = f"{gap.lo:+.3f} to {gap.hi:+.3f}"
    return {
        "theirs": f"{gap.theirs:.3f}",
        "ours": f"{gap.ours:.3f}",
        "difference": f"{gap.difference:+.3f} ({ends})",
        "by": gap.note,
    }


def _sound_folds(project: Project) -> dict[int, Cohort]:
    """The folds that can be trained on; notes say why others are left out.

    Raises:
        RunError: none can.
    """
    sound = {}
    for k, fold in project.folds.items():
        try:
            check_cohort(fold, ())
            sound[k] = fold
        except CohortError as error:
            project.notes.append(f"fold {k}, left out: {error}")
    if not sound:
        listed = "\n".join(project.notes)
        raise RunError(f"no fold can be trained on:\n{listed}")
    return sound


def _predictions(
    where: pathlib.Path, classes: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Probabilities of the test slides of a run."""
    return {
        line["slide_id"]: np.array([float(line[f"p_{name}"]) for name in classes])
        for line in read_csv(where / "predictions.csv")
    }
