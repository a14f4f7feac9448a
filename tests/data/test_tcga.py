"""TCGA's names and the GDC's table: which slides, whose, and how they are graded."""

import logging

import pytest

from wsi_jax.data.cohort import CohortError
from wsi_jax.data.gdc_gleason import Gleason, isup, read_gleason
from wsi_jax.data.tcga import Barcode, Grading, parse_barcode, read_tcga_prad

UUID = "2C2BC0B0-6F1E-4A3D-9C58-3D0E0F0A7E11"


def name(patient, sample="01Z", kind="DX1"):
    return f"{patient}-{sample}-00-{kind}.{UUID}"


def table(path, lines, dotted=False):
    """The GDC's clinical.tsv, as it was until 2024 and as it is since."""
    columns = ("case_submitter_id", "primary_gleason_grade", "secondary_gleason_grade")
    if dotted:
        columns = ("cases.submitter_id", *(f"diagnoses.{c}" for c in columns[1:]))
    columns = ("project_id", *columns, "treatment_type")
    rows = [("TCGA-PRAD", *line, "'--") for line in lines]
    path.write_text("\n".join("\t".join(row) for row in (columns, *rows)) + "\n")
    return path


@pytest.fixture
def folder(tmp_path):
    """Twelve men, two with a second slide; frozen, normal and foreign ones beside."""
    slides = tmp_path / "slides"

    def touch(slide_id, uuid=""):
        path = slides / uuid / f"{slide_id}.svs"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    for i in range(12):
        touch(name(f"TCGA-{'ABC'[i % 3]}{i % 3}-000{i:X}"), uuid=f"uuid-{i}")
    touch(name("TCGA-A0-0000", kind="DX2"))
    touch(name("TCGA-B1-0001", kind="DX2"))
    touch(name("TCGA-A0-0000", sample="01A", kind="TS1"))
    touch(name("TCGA-A0-0000", sample="11A", kind="DX1"))
    touch("CMU-1")
    (slides / "uuid-0/logs").mkdir()
    (slides / "uuid-0/logs/TCGA.parcel").touch()
    return slides


# The two patterns of growth of each man, as one number.
_GRADES = (33, 34, 43, 44, 54, 35, 34, 43, 55, 33)
GRADES = {
    f"TCGA-{'ABC'[i % 3]}{i % 3}-000{i}": divmod(grades, 10)
    for i, grades in enumerate(_GRADES)
}


@pytest.fixture(params=[False, True], ids=["plain", "dotted"])
def clinical(tmp_path, request):
    lines = [(p, f"Pattern {a}", f"Pattern {b}") for p, (a, b) in GRADES.items()]
    lines += [(p, *grades) for p, *grades in lines[:3]]  # another treatment
    lines += [(p, "'--", "'--") for p, *_ in lines[:2]]  # another diagnosis
    lines += [("TCGA-B1-000A", "'--", "'--"), ("TCGA-ZZ-0000", "Pattern 4", "'--")]
    return table(tmp_path / "clinical.tsv", lines, request.param)


def test_barcodes():
    long = name("TCGA-2A-A8VL")
    assert parse_barcode(long) == Barcode("TCGA-2A-A8VL", "2A", "01", "DX")
    frozen = parse_barcode("TCGA-CR-7395-01A-01-TS1")
    assert frozen == Barcode("TCGA-CR-7395", "CR", "01", "TS")
    assert parse_barcode("CMU-1") is None
    assert parse_barcode("TCGA-2A-A8VL") is None


def test_grade_groups():
    groups = {(2, 3): 1, (3, 3): 1, (3, 4): 2, (2, 5): 2, (4, 3): 3, (5, 2): 3}
    groups |= {(4, 4): 4, (3, 5): 4, (5, 3): 4, (4, 5): 5, (5, 4): 5, (5, 5): 5}
    assert {grades: isup(Gleason(*grades)) for grades in groups} == groups


def test_the_slides_of_graded_men(folder, clinical, caplog):
    with caplog.at_level(logging.WARNING):
        cohort = read_tcga_prad(folder, clinical, Grading.isup)
    assert cohort.classes == ("isup_1", "isup_2", "isup_3", "isup_4", "isup_5")
    assert len({row.slide_id for row in cohort.rows}) == 12  # ten men, two with two
    for row in cohort.rows:
        assert row.label == f"isup_{isup(Gleason(*GRADES[row.patient_id]))}"
        assert row.site == row.patient_id[5:7]
        assert row.slide_id.endswith(UUID)
        assert row.path.endswith(f"{row.slide_id}.svs")
    for message in (
        "1 slides left out, their names are no barcodes: CMU-1",
        "2 slides left out, they are not DX of sample type 01",
        f"2 slides left out, {clinical} does not grade their patients",
        *(name("TCGA-B1-000A"), name("TCGA-C2-000B")),
    ):
        assert message in caplog.text
    high = read_tcga_prad(folder, clinical, Grading.high_grade)
    assert high.classes == ("low_grade", "high_grade")
    for row in high.rows:
        assert row.label == high.classes[sum(GRADES[row.patient_id]) >= 8]


def test_other_slides_when_asked_for(folder, clinical):
    both = read_tcga_prad(
        folder, clinical, Grading.isup, kinds=("DX", "TS"), samples=("01",)
    )
    assert len(both.rows) == 13
    with pytest.raises(CohortError, match=r"no slide .* MS of .*--config\.data\.kinds"):
        read_tcga_prad(folder, clinical, Grading.isup, kinds=("MS",))


def test_a_man_with_two_grades_has_none_and_the_primary_disease_counts(
    tmp_path, caplog
):
    path = tmp_path / "clinical.tsv"
    lines = [("TCGA-A0-0000", "Pattern 3", "Pattern 4")]
    lines += [("TCGA-A0-0000", "Pattern 4", "Pattern 3"), ("TCGA-A0-0001", "3", "3")]
    with caplog.at_level(logging.WARNING):
        grades = read_gleason(table(path, lines))
    assert grades == {"TCGA-A0-0001": (3, 3)}
    assert "1 patients have two grades, so none: TCGA-A0-0000" in caplog.text
    path.write_text(
        "cases.submitter_id\tdiagnoses.diagnosis_is_primary_disease\t"
        "diagnoses.primary_gleason_grade\tdiagnoses.secondary_gleason_grade\n"
        "TCGA-A0-0000\ttrue\tPattern 3\tPattern 4\n"
        "TCGA-A0-0000\tfalse\tPattern 5\tPattern 5\n"
    )
    assert read_gleason(path) == {"TCGA-A0-0000": (3, 4)}


def test_tables_and_folders_that_are_none(tmp_path, folder):
    path = table(tmp_path / "clinical.tsv", [("TCGA-A0-0000", "Pattern 6", "'--")])
    assert read_gleason(path) == {}
    with pytest.raises(CohortError, match=r"grades no patient of the 14 slides"):
        read_tcga_prad(folder, path, Grading.isup)
    table(path, [("TCGA-A0-0000", "Pattern 6", "Pattern 3")])
    with pytest.raises(CohortError, match=r"line 2: .*'Pattern 6'.*write Pattern 1 to"):
        read_gleason(path)
    path.write_text("case_submitter_id\tage\nTCGA-A0-0000\t60\n")
    with pytest.raises(CohortError, match=r"no column .*primary_gleason_grade"):
        read_gleason(path)
    table(path, [("TCGA-A0-0000", "Pattern 3", "Pattern 3")])
    with pytest.raises(CohortError, match="no such folder of slides"):
        read_tcga_prad(tmp_path / "elsewhere", path, Grading.isup)
    (folder / f"{name('TCGA-A0-0000')}.svs").touch()
    with pytest.raises(CohortError, match=r"TCGA-A0-0000.* is any of .*keep one"):
        read_tcga_prad(folder, path, Grading.isup)
