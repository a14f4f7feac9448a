"""Refuses a cohort in which a split leaks into another, or the encoder saw the test."""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import NamedTuple

from wsi_jax.data.cohort import PATH_COLUMNS, SPLITS, Cohort, CohortError, in_split
from wsi_jax.data.slide_id_checks import barcode_patient
from wsi_jax.files import content_id
from wsi_jax.slides.dicom import series_uid
from wsi_jax.slides.slide_id import slide_id_of


class Count(NamedTuple):
    """Numbers of slides and patients of one class at one site in a split."""

    split: str
    label: str
    site: str
    slides: int
    patients: int


class Lint(NamedTuple):
    """Summary of a cohort without fault."""

    counts: tuple[Count, ...]  # split x class x site, where there is a slide
    missing: tuple[str, ...]  # files that rows name and that do not exist
    patients: str = ""  # `patients_note`


def lint(cohort: Cohort, pretrained_on: Collection[str] = ()) -> Lint:
    """Counts a cohort's slides and refuses it when a split leaks into another.

    A missing file is reported, not refused: one bad slide does not stop a cohort.
    Clusters may be shared by train and val, which are drawn from one pool, but not with
    test. Files are compared by size, first and last MiB, and by DICOM series. No slide
    id, patient id or cluster that the encoder was `pretrained_on` may be in the test
    split.

    CohortError: listing every fault.
    """
    faults = [
        *_labels(cohort),
        *_splits(cohort),
        *_shared(cohort, "patient", lambda row: {row.patient_id, _barcode(row)} - {""}),
        *_shared(cohort, "slide_id", lambda row: [row.slide_id]),
        *_same_files(cohort),
        *_clusters(cohort),
        *_pretrained_on(cohort, set(pretrained_on)),
    ]
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        raise CohortError(f"the cohort has {len(faults)} faults:\n{listed}")
    named = {getattr(row, name) for row in cohort.rows for name in PATH_COLUMNS}
    missing = tuple(sorted(path for path in named - {""} if not os.path.exists(path)))
    return Lint(_counts(cohort), missing, patients_note(cohort))


def patients_note(cohort: Cohort) -> str:
    """Says which patients the manifest does not name: those of barcodes, or each slide.

    "" where every slide has a patient that is not itself, nor its barcode's.
    """
    n = len(cohort.rows)
    own = sum(row.patient_id == row.slide_id for row in cohort.rows)
    coded = sum(row.patient_id == _barcode(row) != row.slide_id for row in cohort.rows)
    notes = []
    if coded:
        notes.append(f"{coded} of {n} slides have the patient of their barcode")
    if own:
        which = "every slide counts" if own == n else f"{own} of {n} slides count"
        notes.append(
            f"{which} as a patient of its own, so that slides of one patient may lie "
            "in two splits: name patients in a column patient_id"
        )
    return "; ".join(notes)


def format_counts(summary: Lint) -> str:
    """The counts as a text table, and the missing files below it."""
    table = [
        Count._fields,
        *([str(cell) for cell in count] for count in summary.counts),
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip()
        for cells in table
    ]
    if summary.patients:
        lines.append(f"patients: {summary.patients}")
    if summary.missing:
        lines += [f"missing files: {len(summary.missing)}", *summary.missing]
    return "\n".join(lines)


def _barcode(row):
    """The patient of a slide's barcode, or ""."""
    return barcode_patient(row.slide_id, slide_id_of(row.path))


def _counts(cohort):
    slides = Counter((row.split, row.label, row.site) for row in cohort.rows)
    patients = defaultdict(set)
    for row in cohort.rows:
        patients[row.split, row.label, row.site].add(row.patient_id)
    order = sorted(
        slides, key=lambda k: (SPLITS.index(k[0]), cohort.classes.index(k[1]), k[2])
    )
    return tuple(Count(*key, slides[key], len(patients[key])) for key in order)


def _labels(cohort):
    if len(cohort.classes) < 2:
        yield f"classes {cohort.classes}: a classifier needs two; mend the labels"
    for row in cohort.rows:
        if row.label not in cohort.classes:
            yield (
                f"slide {row.slide_id!r} has label {row.label!r}, which is not among "
                f"{cohort.classes}; mend the label or add the class"
            )


def _splits(cohort):
    strange = Counter(row.split for row in cohort.rows if row.split not in SPLITS)
    for split, n in strange.items():
        name = f"split {split!r}" if split else "no split"
        yield f"{n} slides have {name}; use train, val, test or run assign_splits"
    for split in SPLITS:
        rows = in_split(cohort, split).rows
        if not rows and split != "train":
            continue
        if len(rows) < 2:
            yield f"split {split!r} has {len(rows)} slides; give it at least 2"
            continue
        for label in cohort.classes:
            if not any(row.label == label for row in rows):
                yield (
                    f"split {split!r} has no slide of class {label!r}; "
                    "move some there or assign the splits anew"
                )


def _shared(cohort, what, names):
    """Names that rows of different splits share."""
    splits = defaultdict(set)
    for row in cohort.rows:
        for name in names(row):
            splits[name].add(row.split)
    for name, several in sorted(splits.items()):
        if len(several) > 1:
            both = " and ".join(map(repr, sorted(several)))
            yield f"{what} {name!r} is in {both}; keep it in one"


def _same_files(cohort):
    """One file under two slide ids, in two splits or with two labels."""
    by_path, by_content = defaultdict(list), defaultdict(list)
    for row in cohort.rows:
        if row.path:
            by_path[os.path.realpath(row.path)].append(row)
    by_size = defaultdict(list)
    for path in by_path:
        if os.path.isfile(path):
            by_size[os.path.getsize(path)].append(path)
    # Only files of equal size can be equal: few are opened.
    for paths in by_size.values():
        for path in paths if len(paths) > 1 else ():
            by_content[content_id(path)].append(by_path[path][0])
    by_series = defaultdict(list)  # each of its files is the whole slide
    for path in by_path:
        uid = series_uid(path) if path.lower().endswith(".dcm") else ""
        if uid:
            by_series[os.path.dirname(path), uid] += by_path[path]
    kinds = {"path": by_path, "content": by_content, "DICOM series": by_series}
    for kind, groups in kinds.items():
        for rows in groups.values():
            if len({(row.split, row.label) for row in rows}) > 1:
                listed = ", ".join(
                    f"{r.slide_id!r} ({r.split}, {r.label})" for r in rows
                )
                yield f"slides {listed} have the same {kind}; keep one"


def _clusters_of(row):
    return [name for name in row.cluster.split(";") if name]


def _clusters(cohort):
    pool = {"train": "train or val", "val": "train or val"}
    rows = tuple(
        dataclasses.replace(row, split=pool[row.split]) if row.split in pool else row
        for row in cohort.rows
    )
    return _shared(cohort._replace(rows=rows), "cluster", _clusters_of)


def _pretrained_on(cohort, names):
    for row in in_split(cohort, "test").rows:
        shared = {row.slide_id, row.patient_id, *_clusters_of(row)} & names
        if shared:
            yield (
                f"test slide {row.slide_id!r}: the encoder has learnt from "
                f"{sorted(shared)}; take another encoder or leave the slide out"
            )
