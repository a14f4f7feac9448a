"""Reads the folder of BACH (ICIAR 2018) into a cohort.

400 fields of breast tissue, 2048 x 1536 px at 0.42 um/px, a hundred of each class:

    Photos/Normal/n001.tif    Photos/InSitu/is001.tif
    Photos/Benign/b001.tif    Photos/Invasive/iv001.tif
    Photos/microscopy_ground_truth.csv    a line an image, no header: n001.tif,Normal

Several images come from one patient, and which is public for a part of them only. All
errors are CohortErrors that name the file or the images and the mend.
"""

import os
import pathlib
from collections.abc import Collection

from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.data.csv_table import CohortError, find_column, read_lines, read_table
from wsi_jax.data.slide_folder import abbreviate, check_missing, warn_left_out
from wsi_jax.slides.slide_id import slide_id_of

CLASSES = ("Normal", "Benign", "InSitu", "Invasive")
MPP = 0.42
TRUTH = "microscopy_ground_truth.csv"
_INSIDE = ("", "Photos", "ICIAR2018_BACH_Challenge/Photos")


def read_bach(
    folder: str | os.PathLike,
    *,
    patients: str | os.PathLike | None = None,
    complete: bool = True,
) -> Cohort:
    """Reads the labelled images, without a split: the test labels were never public.

    Each image's label is that of `microscopy_ground_truth.csv`, and where it lies in a
    folder of a class, both must agree. Images that lie beside the CSV are read as well.

    Args:
        folder: `Photos`, or the one that holds it.
        patients: CSV with columns file and patient, empty where unknown; a column
            cluster names what a practice image was made of. An image that it does not
            name counts as a patient of its own.
        complete: refuse a folder that lacks images of the CSV or holds others; when
            False they are left out with a warning.
    """
    places = [pathlib.Path(folder, name) for name in _INSIDE]
    photos = next((p for p in places if (p / TRUTH).is_file()), None)
    if photos is None:
        raise CohortError(
            f"{folder}: no {TRUTH} in it or in its Photos/; give the folder of BACH "
            "that holds Photos/"
        )
    truth = read_truth(photos / TRUTH)
    images = _images(photos)
    extra = sorted(set(images) - set(truth))
    if extra and complete:
        raise CohortError(
            f"{photos}: {len(extra)} images are not in {TRUTH}: {abbreviate(extra)}; "
            "add their lines, or leave them out with --config.data.complete=False"
        )
    warn_left_out(f"not in {TRUTH}", extra, "images")
    missing = [name for name in truth if name not in images]
    check_missing(photos, missing, len(truth), complete, what="images")
    patient_of = _patients(patients, truth) if patients else {}
    rows = []
    for slide_id, label in truth.items():
        if slide_id not in images:
            continue
        path = images[slide_id]
        inside = path.parent.name
        if path.parent != photos and inside != label:
            raise CohortError(
                f"{path} lies in {inside}, {TRUTH} says {label}; move the file or mend "
                "the line"
            )
        patient, cluster = patient_of.get(slide_id, ("", ""))
        rows.append(
            Row(slide_id, str(path), label, patient or slide_id, "", cluster=cluster)
        )
    if not rows:
        raise CohortError(f"{photos}: none of its {len(truth)} images; copy them")
    return Cohort(tuple(rows), CLASSES)


def read_truth(path: str | os.PathLike) -> dict[str, str]:
    """{image: class} of a microscopy_ground_truth.csv, which has no header."""
    classes = {name.casefold(): name for name in CLASSES}
    truth = {}
    for number, cells in read_lines(path):
        if len(cells) != 2 or not cells[0] or cells[1].casefold() not in classes:
            raise CohortError(
                f"{path}, line {number}: {','.join(cells)!r}; write n001.tif and "
                f"{', '.join(CLASSES[:-1])} or {CLASSES[-1]}, without a header"
            )
        slide_id = slide_id_of(cells[0])
        if slide_id in truth:
            raise CohortError(f"{path}, line {number}: {slide_id} again; remove one")
        truth[slide_id] = classes[cells[1].casefold()]
    if not truth:
        raise CohortError(f"{path}: no image in it; write n001.tif,Normal and so on")
    return truth


def _images(photos: pathlib.Path) -> dict[str, pathlib.Path]:
    """{image: path} of those in the folders of the classes and beside them."""
    images = {}
    for place in (photos, *(photos / name for name in CLASSES)):
        for path in sorted(place.glob("*.tif")):
            if path.name.startswith("."):
                continue
            if path.stem in images:
                raise CohortError(f"{path} is also {images[path.stem]}; remove one")
            images[path.stem] = path
    return images


def _patients(
    path: str | os.PathLike, truth: Collection[str]
) -> dict[str, tuple[str, str]]:
    """{image: (patient, cluster)} of those that a CSV names."""
    header, lines = read_table(path, ("file",))
    find_column(path, header, ("patient",))
    patients = {}
    for number, cells in lines:
        where, slide_id = f"{path}, line {number}", slide_id_of(cells["file"])
        if slide_id not in truth:
            raise CohortError(
                f"{where}: {cells['file']!r} is no image of {TRUTH}; mend the name or "
                "remove the line"
            )
        if slide_id in patients:
            raise CohortError(f"{where}: {slide_id} again; remove one")
        patients[slide_id] = cells["patient"], cells.get("cluster", "")
    return patients
