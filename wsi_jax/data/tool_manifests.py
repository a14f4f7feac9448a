"""Imports cohorts from the files of CLAM, SASHA, torchmil, StreamingCLAM and TRIDENT.

    CLAM, SASHA    case_id,slide_id,label; a split file (`split_files.py`)
    torchmil       bag_name,split; labels from any CSV
    StreamingCLAM  slide,label; one CSV for each split
    TRIDENT        wsi,mpp; labels from any CSV

Slides are found anywhere below a folder by their name without extension. A slide that a
split file leaves out is left out, as those tools do, with a warning. All errors are
CohortErrors that name the file, the slides and the mend.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

from wsi_jax.data import cohort, slide_folder, split_files
from wsi_jax.data.cohort import SPLITS, Cohort, Row
from wsi_jax.data.csv_table import CohortError, find_column, read_table
from wsi_jax.data.slide_folder import check_missing, find_slides, warn_left_out
from wsi_jax.data.slide_id_checks import check_id
from wsi_jax.slides.slide_id import slide_id_of

PathLike = str | os.PathLike
IDS = ("slide_id", "slide", "image", "bag_name", "wsi")
PATIENTS = ("patient_id", "patient", "case_id")


@dataclasses.dataclass(kw_only=True)
class Slides:
    """Location of an imported cohort's slides and labels."""

    folder: PathLike  # searched for slides, with all folders below it
    label: str = "label"  # column of the labels
    classes: tuple[str, ...] = ()  # in the order wanted; sorted when empty
    complete: bool = True  # refuse a cohort with missing slides, or leave them out


def from_clam(table: PathLike, splits: PathLike | None, slides: Slides) -> Cohort:
    """CLAM's dataset CSV (slide_id, label, and case_id for the patient) and one of its
    splits, `splits_0.csv` or `splits_0_bool.csv`; None leaves the splits to be
    assigned."""
    split_of = None if splits is None else split_files.read_clam_split(splits)
    return _cohort(read_labels([table], slides), split_of, slides)


def from_sasha(table: PathLike, splits: PathLike, slides: Slides) -> Cohort:
    """SASHA's CSV (CLAM's, or TCGA's with a patient_id) and its split JSON."""
    split_of = split_files.read_sasha_split(splits)
    return _cohort(read_labels([table], slides), split_of, slides)


def from_torchmil(table: PathLike, splits: PathLike, slides: Slides) -> Cohort:
    """torchmil's `splits.csv`; labels from a CSV with slide_id (or bag_name)."""
    split_of = split_files.read_torchmil_split(splits)
    return _cohort(read_labels([table], slides), split_of, slides)


def from_streaming_clam(
    train: PathLike, val: PathLike, test: PathLike, slides: Slides
) -> Cohort:
    """StreamingCLAM's three CSVs, slide,label each; every slide its own patient."""
    files = dict(zip(SPLITS, (train, val, test), strict=True))
    split_of = {
        slide_id: split
        for split, path in files.items()
        for slide_id in read_labels([path], slides)
    }
    return _cohort(read_labels(list(files.values()), slides), split_of, slides)


def from_trident(table: PathLike, wsis: PathLike, slides: Slides) -> Cohort:
    """TRIDENT's list of slides, wsi,mpp; labels from a CSV with slide_id.

    `wsi` is a path below the folder, with its extension; `mpp` may be empty.
    """
    labelled = read_labels([table], slides)
    _, lines = read_table(wsis, ("wsi",))
    rows = {}
    for number, cells in lines:
        path = pathlib.Path(slides.folder, cells["wsi"])
        slide_id = slide_id_of(path)
        if slide_id not in labelled:
            raise CohortError(
                f"{wsis}, line {number}: no label of {slide_id!r} in {table}; add it"
            )
        if slide_id in rows:
            raise CohortError(
                f"{wsis}, line {number}: {slide_id!r} again; give its slides other "
                "names, or remove one"
            )
        mpp = cohort.parse_mpp(cells.get("mpp", ""), f"{wsis}, line {number}")
        row = labelled[slide_id]
        rows[slide_id] = dataclasses.replace(row, path=str(path), mpp=mpp)
    unlisted = [slide_id for slide_id in labelled if slide_id not in rows]
    warn_left_out(f"{wsis} does not list", unlisted)
    missing = [name for name, row in rows.items() if not os.path.isfile(row.path)]
    return _finish(rows, missing, slides)


def read_labels(
    tables: Sequence[PathLike],
    slides: Slides,
    column_flag: str = "label= (--label)",
    classes_flag: str = "classes= (--classes)",
) -> dict[str, Row]:
    """{slide_id: Row without path and split} of some CSVs; errors name the flags."""
    rows, label, labels = {}, slides.label.casefold(), []
    for table in tables:
        header, lines = read_table(table)
        name = find_column(table, header, IDS)
        mend = f"add it, or name the column of the labels with {column_flag}"
        find_column(table, header, (label,), mend)
        patient = [column for column in PATIENTS if column in header]
        for number, cells in lines:
            where, slide_id = f"{table}, line {number}", slide_id_of(cells[name])
            if not slide_id or not cells[label]:
                empty = name if cells[label] else label
                raise CohortError(f"{where}: {empty!r} is empty; fill it in")
            if slides.classes and cells[label] not in slides.classes:
                raise CohortError(
                    f"{where}: label {cells[label]!r} of slide {slide_id!r} is not "
                    f"among the classes {slides.classes}; mend the cell or the classes"
                )
            if slide_id in rows:
                raise CohortError(f"{where}: slide {slide_id!r} again; remove one")
            check_id(slide_id, where)
            given = cells[patient[0]] if patient else ""
            patient_id = cohort.patient_of(given, slide_id, "", where)
            labels.append((where, cells[label]))
            site = cells.get("site", "")
            rows[slide_id] = Row(slide_id, "", cells[label], patient_id, "", site=site)
    if not slides.classes:
        cohort.check_labels(labels, classes_flag)
    return rows


def _cohort(
    rows: dict[str, Row], split_of: Mapping[str, str] | None, slides: Slides
) -> Cohort:
    if split_of is not None:
        # pandas makes floats of whole numbers in columns of unequal length.
        split_of = {_as_in(rows, name): split for name, split in split_of.items()}
        unknown = sorted(set(split_of) - set(rows))
        if unknown:
            raise CohortError(
                f"{len(unknown)} slides have a split and no label: "
                f"{slide_folder.abbreviate(unknown)}; add them to the CSV of labels"
            )
        warn_left_out("no split names", [name for name in rows if name not in split_of])
        rows = {
            name: dataclasses.replace(row, split=split_of[name])
            for name, row in rows.items()
            if name in split_of
        }
    paths = find_slides(slides.folder, rows)
    rows = {n: dataclasses.replace(r, path=paths.get(n, "")) for n, r in rows.items()}
    return _finish(rows, [name for name in rows if name not in paths], slides)


def _as_in(rows, name):
    whole = name.removesuffix(".0")
    return whole if name not in rows and whole in rows else name


def _finish(rows: dict[str, Row], missing: list[str], slides: Slides) -> Cohort:
    """The cohort of the rows whose slides are there."""
    flag = "complete=False (--allow-missing)"
    complete = slides.complete or len(missing) == len(rows)
    check_missing(slides.folder, missing, len(rows), complete, flag=flag)
    rows = tuple(row for name, row in rows.items() if name not in set(missing))
    classes = slides.classes or tuple(sorted({row.label for row in rows}))
    return Cohort(rows, classes)
