"""A cohort: one tidy CSV, one row per slide."""

import dataclasses
import difflib
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from wsi_jax.data.csv_table import CohortError, read_table, write_table
from wsi_jax.data.slide_id_checks import barcode_patient, check_id
from wsi_jax.files import any_path
from wsi_jax.slides.slide_id import slide_id_of
from wsi_jax.types import Task

SPLITS = ("train", "val", "test")
PATH_COLUMNS = ("path", "mask_path", "annotation_path")
# What pandas, R and the GDC write where there is no value.
_MISSING = {
    *("na", "nan", "-nan", "n/a", "#n/a", "#na", "#n/a n/a", "<na>", "null", "none"),
    *("missing", "unknown", "not reported", "not available", "[not available]"),
    *("not applicable", "--"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One slide of a cohort; what a CSV does not tell is ""."""

    slide_id: str  # unique in the cohort, in any case; names the slide's feature file
    path: str  # of the slide; "" for a cohort that exists as features only
    label: str  # one of the cohort's classes
    patient_id: str  # slides of one patient are never in two splits
    split: str  # "train", "val", "test", or "" where it is still to be assigned
    mpp: float | None = None  # um per level-0 pixel; wins over what the file says
    site: str = ""  # hospital or scanner
    mask_path: str = ""  # tissue or lesion mask
    annotation_path: str = ""  # lesion polygons
    fold: str = ""  # of a cross-validation
    cluster: str = ""  # what its pixels were made of, names parted by semicolons


class Cohort(NamedTuple):
    """Slides, and label names: a label's index there is the integer methods see."""

    rows: tuple[Row, ...]
    classes: tuple[str, ...]

    @property
    def task(self) -> Task:
        """What is to be predicted of a slide."""
        return Task(self.classes)

    @property
    def targets(self) -> Shaped[np.ndarray, "b ..."]:
        """What is to be predicted of each slide."""
        return self.task.targets(self.rows)


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def read_manifest(
    path: str | os.PathLike, classes: Sequence[str] = (), labelled: bool = True
) -> Cohort:
    """Reads a manifest: CSV with `label` and `slide_id` or `path`; the rest optional.

    Every column is read as text, so ids keep their leading zeros; a byte-order mark,
    blanks around cells, and semicolons or tabs for commas do not matter. Relative
    paths are relative to the manifest. `slide_id` defaults to the file's name without
    its extension, `patient_id` to the patient of a TCGA or CPTAC barcode, else to
    `slide_id`. Columns that are not a Row's are skipped.

    Args:
        path: the CSV.
        classes: label names in the order wanted; sorted when empty, and then words for
            a missing value, and two spellings of one label, are errors.
        labelled: whether a slide without a label is an error.

    CohortError: naming the file, the line and the mend.
    """
    path = any_path(path)
    header, lines = read_table(path)
    _check_header(path, header, labelled)
    # By casefold: on macOS and Windows "S1" and "s1" would name one feature file.
    rows, first = [], {}
    for number, cells in lines:
        where = f"{path}, line {number}"
        row = _row(cells, path.parent, where, labelled)
        earlier, line = first.setdefault(
            row.slide_id.casefold(), (row.slide_id, number)
        )
        if line != number:
            like = "" if earlier == row.slide_id else f", but for its case: {earlier!r}"
            raise CohortError(
                f"{where}: slide_id {row.slide_id!r} is already on line {line}{like}; "
                "remove one or give it another slide_id"
            )
        if classes and row.label not in classes:
            raise CohortError(
                f"{where}: label {row.label!r} of slide {row.slide_id!r} is not among "
                f"the classes {tuple(classes)}; mend the cell or add the class"
            )
        rows.append(row)
    if not rows:
        raise CohortError(f"{path}: no slide below the column names; add one per line")
    if labelled and not classes:
        check_labels(
            (f"{path}, line {n}", row.label)
            for (n, _), row in zip(lines, rows, strict=True)
        )
    return Cohort(tuple(rows), tuple(classes) or tuple(sorted({r.label for r in rows})))


def write_manifest(path: str | os.PathLike, cohort: Cohort) -> None:
    """Writes what `read_manifest` reads, leaving out optional columns nobody fills.

    Files below the manifest's folder are named relative to it, others absolutely.
    """
    folder = pathlib.Path(path).absolute().parent
    table = [_cells(row, folder) for row in cohort.rows]
    keep = [c for c in COLUMNS if c in COLUMNS[:5] or any(cells[c] for cells in table)]
    write_table(path, keep, ([cells[name] for name in keep] for cells in table))


def in_split(cohort: Cohort, split: str) -> Cohort:
    """The cohort's slides of one split, in order, with all its classes."""
    return cohort._replace(rows=tuple(r for r in cohort.rows if r.split == split))


def check_labels(
    labels: Iterable[tuple[str, str]], flag: str = "--config.data.classes"
) -> None:
    """Refuses labels, each with where it stands, that nobody can have meant as classes.

    `flag` lists classes that are meant after all; "" where there is none.

    CohortError: a word for a missing value, or two spellings of one label.
    """
    mean_it = f"to mean it, list the classes: {flag}" if flag else "write another word"
    first: dict[str, tuple[str, str]] = {}
    for where, label in labels:
        if is_missing(label):
            raise CohortError(
                f"{where}: label {label!r} is a word for a missing value; leave the "
                f"line out, or {mean_it}"
            )
        other, line = first.setdefault(_plain_label(label), (label, where))
        if other != label:
            raise CohortError(
                f"{where}: label {label!r} is {other!r} ({line}) but for case, blanks "
                f"or the format of a number; write one of them, or {mean_it}"
            )


def is_missing(cell: str) -> bool:
    """Whether a cell holds a word for a missing value, as NA or nan."""
    return cell.casefold() in _MISSING


def _plain_label(label):
    """A form that all spellings of one label share."""
    plain = " ".join(label.split()).casefold()
    try:
        return plain if "_" in plain else repr(float(plain) + 0)  # -0 is 0
    except ValueError:
        return plain


def patient_of(given: str, slide_id: str, path: str, where: str) -> str:
    """A slide's patient: as given, else by the barcode of id or file, else the id.

    CohortError: a word for a missing value was given.
    """
    if is_missing(given):
        raise CohortError(
            f"{where}: patient {given!r} is a word for a missing value, and would make "
            "one patient of many; leave the cell empty"
        )
    return given or barcode_patient(slide_id, slide_id_of(path)) or slide_id


def _check_header(path, header, labelled):
    for name in header:
        if header.count(name) > 1 and name in COLUMNS:
            raise CohortError(f"{path}: two columns {name!r}; remove one")
        # A misspelt optional column must not vanish: patients would leak.
        near = difflib.get_close_matches(name, set(COLUMNS) - set(header), 1, 0.8)
        if near and name not in COLUMNS:
            raise CohortError(
                f"{path}: column {name!r} is unknown; call it {near[0]!r}, "
                "or give it a name that cannot be mistaken"
            )
    if labelled and "label" not in header:
        raise CohortError(f"{path}: no column 'label' among {header}; add it")
    if "slide_id" not in header and "path" not in header:
        raise CohortError(f"{path}: no 'slide_id' or 'path' among {header}; add one")


def _row(cells, folder, where, labelled):
    cells = dict.fromkeys(COLUMNS, "") | {n: cells[n] for n in cells if n in COLUMNS}
    for name in PATH_COLUMNS:
        if cells[name]:
            cells[name] = str(folder / cells[name])
    cells["slide_id"] = cells["slide_id"] or (
        cells["path"] and slide_id_of(cells["path"])
    )
    cells["patient_id"] = patient_of(
        cells["patient_id"], cells["slide_id"], cells["path"], where
    )
    cells["split"] = cells["split"].casefold()
    if not cells["slide_id"]:
        raise CohortError(f"{where}: neither slide_id nor path; fill one in")
    check_id(cells["slide_id"], where)
    if labelled and not cells["label"]:
        raise CohortError(f"{where}: slide {cells['slide_id']!r} has no label; add it")
    if cells["split"] not in (*SPLITS, ""):
        raise CohortError(
            f"{where}: split {cells['split']!r}; use train, val, test or leave it empty"
        )
    return Row(**cells | {"mpp": parse_mpp(cells["mpp"], where)})


def parse_mpp(text: str, where: str) -> float | None:
    """The mpp in a cell of a CSV, None where it is empty; `where` is for the error."""
    if not text:
        return None
    try:
        mpp = float(text)
    except ValueError:
        mpp = math.nan
    if not 0 < mpp < math.inf:
        raise CohortError(
            f"{where}: mpp {text!r} is not micrometres per pixel; write 0.25, "
            "or leave it empty to use the slide's own"
        )
    return mpp


def _cells(row, folder):
    cells = dataclasses.asdict(row) | {"mpp": "" if row.mpp is None else repr(row.mpp)}
    for name in PATH_COLUMNS:
        if cells[name]:
            absolute = pathlib.Path(cells[name]).absolute()
            inside = absolute.is_relative_to(folder)
            cells[name] = (
                absolute.relative_to(folder) if inside else absolute
            ).as_posix()
    return cells
