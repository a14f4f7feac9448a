"""Features, labels, folds and results in the folder of a CLAM or TRIDENT project.

.../h5_files/SLIDE.h5, .../features_ENCODER/SLIDE.h5     features
any CSV of slide_id,label (and case_id)                  labels
.../splits_0.csv, splits_0_bool.csv                      folds
.../fold_0.csv, .../summary.csv                          results
"""

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wsi_jax.data.cohort import SPLITS, Cohort, Row, in_split
from wsi_jax.data.csv_table import CohortError, read_table
from wsi_jax.data.features import feature_shape
from wsi_jax.data.hdf5 import FeatureError
from wsi_jax.data.slide_folder import abbreviate
from wsi_jax.data.split_files import read_clam_split
from wsi_jax.data.splits import Split, assign_splits
from wsi_jax.data.tool_manifests import IDS, Slides, read_labels
from wsi_jax.run.migrate.results import Results, read_results
from wsi_jax.run.run_folder import RunError

SPLIT_FILE = re.compile(r"splits_(\d+)(_bool)?\.csv")
NEVER_OPENED = {
    ".pt": "pickles of PyTorch, never opened; features come from the .h5 files",
    ".pth": "pickles of PyTorch, never opened",
    ".pkl": "pickles, never opened; results come from fold_*.csv and summary.csv",
}


@dataclasses.dataclass(kw_only=True)
class Options:
    """What to take of a project where it has several.

    Attributes:
        features: folder of feature files; "" for the only one.
        labels: CSV of labels; "" for the only one that names slides with features.
        splits: folder of splits_*.csv; "" for the only one.
        column: column of the labels.
        max_refused: share of slides that may be refused before a run stops.
        out: folder of what is written, not a part of the project; "" for none.
    """

    features: str = ""
    labels: str = ""
    splits: str = ""
    column: str = "label"
    max_refused: float = 0.1
    out: str = ""


class Project(NamedTuple):
    """A project of another tool.

    Attributes:
        features: folder of SLIDE.h5.
        folds: the cohort as each fold splits it, by the fold's number.
        classes: names of the labels.
        results: results of its own models.
        notes: what of the folder is not used, and why.
    """

    features: pathlib.Path
    folds: dict[int, Cohort]
    classes: tuple[str, ...]
    results: list[Results]
    notes: list[str]


def read_project(folder: pathlib.Path, options: Options) -> Project:
    """Reads all of a project but its features.

    Raises:
        ValueError: no features, no labels, or several of which none is chosen.
    """
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder")
    files = _walk(folder, _path(options.out) if options.out else None)
    notes: list[str] = []
    features = _find_features(files, options.features, notes)
    stored = {path.stem for path in features.glob("*.h5")}
    rows, table = _find_labels(files, options, stored, notes)
    rows = {name: row for name, row in rows.items() if name in stored}
    _note(notes, "features without a label, not used", stored - set(rows))
    cohort = Cohort(
        tuple(rows.values()), tuple(sorted({r.label for r in rows.values()}))
    )
    folds, used = _find_folds(files, options.splits, cohort, notes)
    results, read = read_results(folder, files, cohort)
    for path in files:
        used_here = path in {table, *used, *read} or path.parent == features
        if path.suffix == ".csv" and not used_here:
            notes.append(f"{path}: not understood, not used")
    _note_pickles(files, notes)
    return Project(features, folds, cohort.classes, results, notes)


def _walk(folder: pathlib.Path, out: pathlib.Path | None) -> list[pathlib.Path]:
    """All files below a folder but hidden ones, and those below `out`."""
    files = []
    for above, folders, names in os.walk(folder):
        inside = pathlib.Path(above)
        plain = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in plain if (inside / name).resolve() != out]
        files += [inside / name for name in names if not name.startswith(".")]
    return sorted(files)


def _find_features(files, chosen, notes) -> pathlib.Path:
    """The folder of feature files."""
    folders = collections.defaultdict(list)
    for path in files:
        if path.suffix == ".h5":
            folders[path.parent].append(path)
    usable = []
    for folder, paths in folders.items():
        try:
            feature_shape(paths[0])
            usable.append(folder)
        except FeatureError as error:
            notes.append(f"{folder}: no features ({error})")
    if not usable and not chosen:
        raise RunError(
            "no folder of features, as h5_files of CLAM or features_* of TRIDENT; a "
            ".pt is a pickle, which is never opened: extract with the tool once more, "
            "which writes the .h5 files too"
        )
    if chosen and not any(pathlib.Path(chosen).glob("*.h5")):
        raise RunError(f"--features {chosen}: no SLIDE.h5 in it; name another folder")
    return _only(usable, chosen, "folders of features", "--features")


def _find_labels(files, options, stored, notes) -> tuple[dict[str, Row], pathlib.Path]:
    """Labelled slides, and the CSV that they are from."""
    tables, faults = {}, []
    slides = Slides(folder="", label=options.column)
    given = [pathlib.Path(options.labels)] if options.labels else []
    for path in given or [path for path in files if path.suffix == ".csv"]:
        try:
            header, _ = read_table(path)
            labelled = options.column.casefold() in header and {*IDS} & {*header}
            if given or labelled:
                tables[path] = read_labels([path], slides, "--label-column", "")
        except CohortError as error:
            if given:
                raise
            faults.append(str(error))
    usable = [path for path, rows in tables.items() if stored & set(rows)]
    if not usable:
        raise RunError(
            f"no CSV of slide_id and {options.column} names a slide with features; add "
            "--labels FILE, and --label-column NAME where it is called otherwise"
            + "".join(f"\n  - {fault}" for fault in faults)
        )
    notes += [f"no labels: {fault}" for fault in faults]
    table = _only(usable, options.labels, "CSVs of labels", "--labels")
    return tables[table], table


def _find_folds(files, chosen, cohort, notes):
    """The cohort as each fold splits it, and the files of the folds."""
    folders = collections.defaultdict(dict)
    names = {row.slide_id for row in cohort.rows}
    for path in files:
        match = SPLIT_FILE.fullmatch(path.name)
        if not match or (chosen and path.parent.resolve() != _path(chosen)):
            continue
        try:
            split_of = read_clam_split(path)
        except CohortError as error:
            notes.append(f"no fold: {error}")
            continue
        # pandas makes floats of whole numbers in columns of unequal length.
        split_of = {
            name if name in names else name.removesuffix(".0"): split
            for name, split in split_of.items()
        }
        if names & set(split_of):
            # Of both forms of one split the first in order: splits_0.csv.
            folders[path.parent].setdefault(int(match[1]), split_of)
        else:
            notes.append(f"{path}: names no slide with label and features, not used")
    used = [path for path in files if re.match(r"splits_\d+", path.name)]
    if not folders and chosen:
        raise RunError(f"--splits {chosen}: no splits_*.csv of these slides in it")
    if not folders:
        notes.append(
            "no splits_*.csv of these slides: one is drawn, by patient and class"
        )
        return {0: assign_splits(cohort, Split())}, used
    # CLAM copies the splits beside its results.
    own = [
        f for i, f in enumerate(folders) if folders[f] not in [*folders.values()][:i]
    ]
    folder = _only(own, "", "folders of splits", "--splits")
    folds = {}
    for k, split_of in sorted(folders[folder].items()):
        folds[k] = _split(cohort, split_of)
        _note(notes, f"fold {k}: without label or features", set(split_of) - names)
        _note(notes, f"fold {k}: in no split", names - set(split_of))
    return folds, used


def _path(name: str) -> pathlib.Path:
    return pathlib.Path(name).resolve()


def _split(cohort: Cohort, split_of: Mapping[str, str]) -> Cohort:
    rows = (
        dataclasses.replace(row, split=split_of[row.slide_id])
        for row in cohort.rows
        if row.slide_id in split_of
    )
    return cohort._replace(rows=tuple(rows))


def _only(paths: Sequence[pathlib.Path], chosen: str, what: str, flag: str):
    """The chosen one of some paths, or the only one."""
    if chosen:
        return pathlib.Path(chosen)
    if len(paths) > 1:
        listed = abbreviate(list(map(str, paths)))
        raise RunError(f"{len(paths)} {what}: {listed}; choose one with {flag}")
    return paths[0]


def _note(notes: list[str], what: str, names) -> None:
    if names:
        notes.append(f"{what}: {len(names)} slides, {abbreviate(sorted(names))}")


def _note_pickles(files, notes) -> None:
    """Files that could run code when they are opened, counted by folder."""
    counts = collections.Counter(
        (path.parent, path.suffix) for path in files if path.suffix in NEVER_OPENED
    )
    for (folder, suffix), n in counts.items():
        notes.append(f"{folder}: {n} {suffix}: {NEVER_OPENED[suffix]}")


def counts(cohort: Cohort) -> str:
    """Slides in each split: "20 train, 5 val, 10 test"."""
    return ", ".join(f"{len(in_split(cohort, s).rows)} {s}" for s in SPLITS)
