"""BACH's folder: whole, in part, at odds with itself; and whose the images are."""

import shutil
from collections import Counter

import pytest

from wsi_jax.data.bach import CLASSES, TRUTH, read_bach, read_truth
from wsi_jax.data.cohort import CohortError


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def by_id(cohort):
    return {row.slide_id: row for row in cohort.rows}


@pytest.fixture
def official(tmp_path, shared):
    photos = tmp_path / "ICIAR2018_BACH_Challenge/Photos"
    truth = shared / "data/splits/bach_ground_truth.csv"
    for name, label in read_truth(truth).items():
        touch(photos / label / f"{name}.tif")
    touch(photos / "Normal/._n001.tif")
    shutil.copyfile(truth, photos / TRUTH)
    return photos


@pytest.fixture
def small(tmp_path):
    """One image of each class, flat beside the CSV."""
    for name in ("n001", "b001", "is001", "iv001"):
        touch(tmp_path / f"small/{name}.tif")
    (tmp_path / "small" / TRUTH).write_text(
        "n001.tif,Normal\nb001.tif,Benign\n\nis001.tif, insitu\niv001.tif,Invasive\n"
    )
    return tmp_path / "small"


def test_the_official_layout_from_each_of_its_folders(official):
    cohort = read_bach(official)
    assert cohort.classes == ("Normal", "Benign", "InSitu", "Invasive")
    assert Counter(r.label for r in cohort.rows) == dict.fromkeys(CLASSES, 100)
    assert {row.split for row in cohort.rows} == {""}
    row = by_id(cohort)["is007"]
    assert (row.label, row.patient_id) == ("InSitu", "is007")
    assert row.path == str(official / "InSitu/is007.tif")
    assert read_bach(official.parent) == read_bach(official.parent.parent) == cohort


def test_images_beside_the_csv(small):
    labels = {row.slide_id: row.label for row in read_bach(small).rows}
    assert labels == dict(zip(("n001", "b001", "is001", "iv001"), CLASSES, strict=True))


def test_missing_and_unlisted_images_are_named_or_left_out(official):
    (official / "Benign/b100.tif").unlink()
    (official / "Invasive/iv002.tif").unlink()
    message = r"2 of 400 .*: b100, iv002; copy .*--config\.data\.complete=False"
    with pytest.raises(CohortError, match=message):
        read_bach(official)
    touch(official / "Normal/n101.tif")
    with pytest.raises(CohortError, match=r"1 images are not in .*: n101; .*complete"):
        read_bach(official)
    assert len(read_bach(official, complete=False).rows) == 398


@pytest.mark.parametrize("complete", [True, False])
def test_a_label_has_one_truth(official, complete):
    """Folder and CSV never disagree in silence, nor do two copies of an image."""
    shutil.move(official / "InSitu/is003.tif", official / "Normal/is003.tif")
    with pytest.raises(CohortError, match=r"is003\.tif lies in Normal, .* says InSitu"):
        read_bach(official, complete=complete)
    touch(official / "InSitu/is003.tif")
    with pytest.raises(CohortError, match=r"is003\.tif is also .*Normal"):
        read_bach(official, complete=complete)


@pytest.mark.parametrize(
    "line",
    ["file,label", "n002.tif", "n002.tif;Normal", "n002.tif,Malignant", ",Normal"],
)
def test_a_truth_or_a_line_of_it_that_is_none(small, tmp_path, line):
    truth = small / TRUTH
    lines = truth.read_text()
    for text, message in (
        (f"{lines}{line}\n", f"line 6: '{line}'; write n001.tif and"),
        (f"{lines}n001.tif,Normal\n", "line 6: n001 again"),
        ("", "no image in it"),
        ("n009.tif,Normal\n", "none of its 1 images"),
    ):
        truth.write_text(text)
        with pytest.raises(CohortError, match=message):
            read_bach(small, complete=False)
    with pytest.raises(CohortError, match=r"no microscopy_ground_truth.csv .*Photos/"):
        read_bach(tmp_path)


def test_the_map_of_patients_is_partial(official, tmp_path):
    """Images that it does not name are their own patients."""
    path = tmp_path / "patients.csv"
    lines = [f"Normal/n{i:03}.tif,p{i % 7}" for i in range(1, 57)]
    lines += [f"iv{i:03}.tif,p{i % 7}" for i in range(1, 29)]
    path.write_text("file,patient\n" + "\n".join([*lines, "b001.tif,"]) + "\n")
    rows = by_id(read_bach(official, patients=path))
    assert rows["n008"].patient_id == rows["iv001"].patient_id == "p1"
    assert (rows["b001"].patient_id, rows["is001"].patient_id) == ("b001", "is001")
    patients = {row.patient_id for row in rows.values()}
    assert len(patients) == 400 - 56 - 28 + 7


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("file,who\nn001.tif,p1\n", "no column 'patient'"),
        ("image,patient\nn001.tif,p1\n", "no column 'file'"),
        ("file,patient\nn001.tif,p1\nn001.tif,p2\n", "line 3: n001 again"),
        ("file,patient\nn500.tif,p1\n", r"line 2: 'n500\.tif' is no image of"),
    ],
)
def test_a_map_that_is_none(small, text, match):
    path = small / "patients.csv"
    path.write_text(text)
    with pytest.raises(CohortError, match=match):
        read_bach(small, patients=path)
