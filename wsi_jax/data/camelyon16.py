"""Reads the folders of CAMELYON16 into a cohort.

Two layouts are read, the challenge's own and that of `s3://camelyon-dataset`:

    training/normal/normal_001.tif            images/normal_001.tif
    training/tumor/tumor_001.tif              images/tumor_001.tif
    training/lesion_annotations/tumor_001.xml annotations/tumor_001.xml
    testing/images/test_001.tif               images/test_001.tif
    testing/lesion_annotations/test_001.xml   annotations/test_001.xml
    testing/reference.csv                     evaluation/reference.csv
                                              masks/tumor_001_mask.tif

A practice cohort has the first layout, any number of slides, and a `slides.csv` (our
manifest) that names patients, sites and clusters.
"""

import dataclasses
import os
import pathlib
from typing import NamedTuple

from wsi_jax.data.cohort import Cohort, Row, read_manifest
from wsi_jax.data.csv_table import CohortError, find_column, read_lines, read_table
from wsi_jax.data.slide_folder import abbreviate, check_missing, warn_left_out
from wsi_jax.data.splits import Split, assign_splits

CLASSES = ("normal", "tumor")

# normal_086 was a tumour and became tumor_111; test_049 was a duplicate.
TRAINING = tuple(
    [f"normal_{i:03}" for i in range(1, 161) if i != 86]
    + [f"tumor_{i:03}" for i in range(1, 112)]
)
TESTING = tuple(f"test_{i:03}" for i in range(1, 131) if i != 49)

_NAMES = ("test_", *(f"{name}_" for name in CLASSES))
# Columns of the metadata: the slide's name and its centre.
_COLUMNS = (
    ("slide_name", "image", "slide_id"),
    ("hospital_corrected", "hospital", "center", "site"),
)
_MEND = (
    "it needs slide_name, image or slide_id, and hospital_corrected, hospital, center "
    "or site"
)
CENTRES = {0.0: "RUMC", 1.0: "UMCU"}


class Reference(NamedTuple):
    """The truth of a test slide."""

    label: str  # "normal" or "tumor"
    lesion: str  # "Macro" (2 mm or more), "Micro" or "None"; "" where not stated


def read_camelyon16(
    folder: str | os.PathLike,
    *,
    val: float,
    seed: int,
    metadata: str | os.PathLike | None = None,
    complete: bool = True,
) -> Cohort:
    """Reads the folders into a cohort: official test set, val drawn from training.

    Every slide counts as a patient of its own, unless `slides.csv` says otherwise. The
    validation slides are drawn by class and site, always the same for one seed.

    Args:
        folder: the one that holds `training/` or `images/`.
        val: share of the training slides that validate, drawn from `seed`.
        metadata: CSV with each slide's centre: columns slide_name, image or slide_id,
            and hospital_corrected, hospital, center or site. The labels it may hold are
            not read: for test_114 they disagree with reference.csv, which decides.
        complete: refuse a folder that lacks slides of the challenge or of
            reference.csv; when False they are left out with a warning.

    CohortError: naming the file or the slides and the mend.
    """
    folder = pathlib.Path(folder)
    aws = _is_aws(folder)
    part = "evaluation" if aws else "testing"
    outlines = [f"{which}/lesion_annotations" for which in ("training", "testing")]
    outlines = ["annotations"] * 2 if aws else outlines
    reference = read_reference(folder / part / "reference.csv")
    paths = _slides(folder, aws)
    practice = set(reference) != set(TESTING)
    training = sorted(set(paths) - set(reference)) if practice else TRAINING
    expected = {*training, *reference}
    warn_left_out("not of the challenge", sorted(set(paths) - expected))
    check_missing(folder, sorted(expected - set(paths)), len(expected), complete)
    manifest = folder / "slides.csv"
    practice_rows = read_manifest(manifest).rows if manifest.is_file() else ()
    practice_rows = {row.slide_id: row for row in practice_rows}
    rows = []
    for slide_id in filter(paths.get, (*training, *sorted(reference))):
        test = slide_id in reference
        label = reference[slide_id].label if test else slide_id.split("_")[0]
        row = practice_rows.get(slide_id, Row(slide_id, "", label, slide_id, ""))
        rows.append(
            dataclasses.replace(
                row,
                path=str(paths[slide_id]),
                label=label,
                split="test" if test else "",
                annotation_path=_file(folder, outlines[test], f"{slide_id}.xml"),
                mask_path=row.mask_path
                or _file(folder, "masks", f"{slide_id}_mask.tif"),
                fold="",
            )
        )
    if metadata is not None:
        rows = _with_sites(rows, metadata)
    config = Split(train=1 - val, val=val, test=0.0, seed=seed)
    return assign_splits(Cohort(tuple(rows), CLASSES), config)


def read_reference(path: str | os.PathLike) -> dict[str, Reference]:
    """{test slide: Reference} of a reference.csv, with or without a header."""
    reference = {}
    for index, (number, cells) in enumerate(read_lines(path)):
        label = cells[1].casefold() if len(cells) > 1 else ""
        is_slide = cells[0].casefold().startswith(_NAMES)
        if index == 0 and not is_slide and label not in CLASSES:
            continue  # the column names
        if not is_slide or label not in CLASSES:
            raise CohortError(
                f"{path}, line {number}: {','.join(cells)!r}; "
                "write test_001,Tumor or test_001,Normal"
            )
        slide_id = cells[0].removesuffix(".tif")
        if slide_id in reference:
            raise CohortError(f"{path}, line {number}: {slide_id} again; remove one")
        if slide_id.startswith("test_"):
            lesions = [c.capitalize() for c in cells[2:]]
            lesions = [c for c in lesions if c in ("Macro", "Micro", "None")]
            reference[slide_id] = Reference(label, lesions[-1] if lesions else "")
    if not reference:
        raise CohortError(f"{path}: no test slide in it; write test_001,Tumor,...")
    return reference


def _is_aws(folder):
    """Whether the layout is that of `s3://camelyon-dataset`."""
    aws = (folder / "images").is_dir()
    if not aws and not (folder / "training").is_dir():
        raise CohortError(
            f"{folder}: neither images/ nor training/ in it; give the folder of "
            "CAMELYON16 that holds one of them"
        )
    return aws


def _slides(folder, aws):
    names = ("images",) if aws else ("training/normal", "training/tumor")
    names = names if aws else (*names, "testing/images")
    paths = [path for name in names for path in sorted((folder / name).glob("*.tif"))]
    return {path.stem: path for path in paths if not path.name.startswith(".")}


def _file(*parts):
    path = pathlib.Path(*parts)
    return str(path) if path.is_file() else ""


def _with_sites(rows, path):
    header, lines = read_table(path)
    slide, centre = (find_column(path, header, names, _MEND) for names in _COLUMNS)
    sites = {cells[slide].removesuffix(".tif"): cells[centre] for _, cells in lines}
    missing = [row.slide_id for row in rows if not sites.get(row.slide_id)]
    if missing:
        raise CohortError(
            f"{path}: no centre for {abbreviate(missing)}; add their lines"
        )
    return [dataclasses.replace(row, site=_centre(sites[row.slide_id])) for row in rows]


def _centre(text):
    try:
        return CENTRES[float(text)]
    except (ValueError, KeyError):
        return text
