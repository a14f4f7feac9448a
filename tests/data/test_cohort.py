import numpy as np
import pytest

from wsi_jax.data.cohort import Cohort, Row, in_split, read_manifest, write_manifest
from wsi_jax.data.csv_table import CohortError


def write(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "cohort.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_what_is_written_is_read(tmp_path):
    rows = (
        Row("007", str(tmp_path / "a/007.svs"), "b", "p,1", "train", mpp=0.2431),
        Row("x.y", "/elsewhere/x.y.tif", "a", "p2", "", site="Ütrecht", cluster="k;l"),
    )
    path = tmp_path / "cohort.csv"
    write_manifest(path, Cohort(rows, ("a", "b")))
    assert read_manifest(path) == Cohort(rows, ("a", "b"))
    assert "a/007.svs" in path.read_text()
    assert str(tmp_path) not in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["cohort.csv"]


def test_path_and_label_are_enough_and_columns_nobody_fills_are_left_out(tmp_path):
    path = write(tmp_path, "path,label\nTCGA-05.d4ff-32.svs,LUAD\n")
    cohort = read_manifest(path)
    name = "TCGA-05.d4ff-32"
    assert cohort.rows == (Row(name, str(tmp_path / f"{name}.svs"), "LUAD", name, ""),)
    write_manifest(path, cohort)
    assert path.read_text().splitlines()[0] == "slide_id,path,label,patient_id,split"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_spreadsheets_are_forgiven(tmp_path, encoding, separator):
    lines = ["Slide_ID , label,mpp,,", " 001, a ,0.25,,", "", "002,b,,,", ",,,,"]
    text = "\r\n".join(lines).replace(",", separator)
    cohort = read_manifest(write(tmp_path, text, encoding))
    assert [(r.slide_id, r.label, r.mpp) for r in cohort.rows] == [
        ("001", "a", 0.25),
        ("002", "b", None),
    ]


def test_classes_are_sorted_or_in_the_order_given(tmp_path):
    text = "slide_id,label,split\n1,benign,test\n2,tumour,train\n3,atypia,TEST\n"
    path = write(tmp_path, text)
    assert read_manifest(path).classes == ("atypia", "benign", "tumour")
    cohort = read_manifest(path, ("benign", "atypia", "tumour"))
    np.testing.assert_array_equal(cohort.targets, [0, 2, 1])
    test = in_split(cohort, "test")  # keeps its order, and all classes
    assert [r.slide_id for r in test.rows] == ["1", "3"]
    assert test.classes == cohort.classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("slide_id,label\n", "no slide below"),
        ("slide_id,split\n1,train\n", "no column 'label'"),
        ("label,split\na,train\n", "no 'slide_id' or 'path'"),
        (
            "slide_id,label\n1,a\n2,b\n1,b\n",
            "line 4: slide_id '1' is already on line 2",
        ),
        ("path,label\na/1.svs,a\nb/1.tif,b\n", "line 3: slide_id '1' is already"),
        (
            "slide_id,label\ns1,a\nS1,b\n",
            "line 3: slide_id 'S1' is already on line 2, but for its case: 's1'",
        ),
        ("slide_id,label\n1,a\n2,\n", "line 3: slide '2' has no label"),
        ("slide_id,label,split\n1,a,valid\n", "line 2: split 'valid'; use train, val"),
        ("slide_id,label,mpp\n1,a,40x\n", "line 2: mpp '40x' is not micrometres"),
        ("slide_id,label,mpp\n1,a,-1\n", "line 2: mpp '-1'"),
        ("slide_id,label\n1,a,b\n", "line 2: 3 cells under 2 column names"),
        (
            "slide_id,label,patient\n1,a,p\n",
            "'patient' is unknown; call it 'patient_id'",
        ),
        ("slide_id,label,label\n1,a,a\n", "two columns 'label'"),
        ("slide_id,label\na/1,a\n", "line 2: slide_id 'a/1' names files, and no / "),
        ("slide_id,label\na\x07,a\n", "line 2: slide_id 'a\\x07' names files, and it"),
        ("slide_id,label\na\x00b,a\n", "line 2: slide_id 'a\\x00b' names files, and"),
        ("slide_id,label\na\u202eb,a\n", "a character that cannot be printed"),
        ("slide_id,label\n.,a\n", "'.' names files, and it begins or ends with a dot"),
        ("slide_id,label\n..,a\n", "'..' names files"),
        ("slide_id,label\na.,a\n", "'a.' names files"),
        ("slide_id,label\nb:c,a\n", "'b:c' names files, and no : may be in it"),
        ("slide_id,label\nNUL.1,a\n", "'NUL.1' names files, and Windows keeps it"),
        (f"slide_id,label\n{'é' * 101},a\n", "it has 202 bytes, more than 200"),
        ("slide_id,label,patient_id\n1,a,NA\n", "line 2: patient 'NA' is a word for"),
        ("slide_id,label\n1,c\n", "line 2: label 'c' of slide '1' is not among"),
    ],
)
def test_errors_name_the_file_the_line_and_the_mend(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(CohortError, match=r"cohort\.csv") as error:
        read_manifest(path, ("a", "b"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("tumor normal NA", "line 4: label 'NA' is a word for a missing value"),
        ("nan tumor normal", "line 2: label 'nan' is a word for a missing value"),
        ("tumor normal #N/A", "line 4: label '#N/A' is a word for a missing value"),
        ("tumor normal Tumor", "line 4: label 'Tumor' is 'tumor' ("),
        ("0 1 0.0", "line 4: label '0.0' is '0' ("),
        ("01 2 1", "line 4: label '1' is '01' ("),
        ("low_ii high LOW_II", "line 4: label 'LOW_II' is 'low_ii' ("),
    ],
)
def test_labels_nobody_means_are_refused_unless_classes_name_them(
    tmp_path, labels, message
):
    lines = [f"{i},{label}" for i, label in enumerate(labels.split())]
    path = write(tmp_path, "\n".join(["slide_id,label", *lines]))
    with pytest.raises(CohortError) as error:
        read_manifest(path)
    assert message in str(error.value)
    assert "to mean it, list the classes: --config.data.classes" in str(error.value)
    assert read_manifest(path, labels.split()).classes == tuple(labels.split())


def test_what_is_alike_and_not_the_same_stands_and_no_text_is_named(tmp_path):
    path = write(tmp_path, "slide_id,label\n1,4_3\n2,43\n3,-1\n4,1\n5,ER+\n6,ER-\n")
    assert len(read_manifest(path).classes) == 6
    with pytest.raises(CohortError, match="no such manifest"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(CohortError, match="UTF-8"):
        read_manifest(write(tmp_path, "slide_id,label\né,a\n", "latin-1"))


def test_no_spreadsheet_computes_what_is_written_and_it_is_read_as_it_was(tmp_path):
    path = tmp_path / "cohort.csv"
    for text in ("=1+1", "+a", "-a", "@SUM(A1)", "'=1", "''-a", "'a"):
        row = Row(text, str(tmp_path / f"{text}.svs"), text, text, "train", site=text)
        cohort = Cohort((row, Row("-1.5", "", "-1", "+1", "")), ("-1", text))
        write_manifest(path, cohort)
        _, first, second = path.read_text().splitlines()
        assert not any(cell.startswith(tuple("=+-@")) for cell in first.split(","))
        assert second.startswith("-1.5,,-1,+1")
        assert read_manifest(path, cohort.classes) == cohort


def test_patients_are_read_from_barcodes_where_none_is_given(tmp_path):
    names = (
        *("TCGA-A0-1000-01Z-00-DX1.0A", "tcga-a0-1000-01Z-00-DX2.0B", "C3L-00004-21"),
        *("C3N-01362-26", "11LU013-a1b2", "01BR001", "TCGA-A0-10001", "C3L-000041"),
        *("slide_7", "x-TCGA-A0-1000-01Z"),
    )
    lines = [f"{name}.svs,a,," for name in names]
    lines += ["TCGA-A0-1000-01Z-00-DX3.svs,a,mine,", "C3L-00004-22.svs,a,,other"]
    path = write(tmp_path, "\n".join(["path,label,patient_id,slide_id", *lines]))
    assert [row.patient_id for row in read_manifest(path).rows] == [
        *("TCGA-A0-1000", "TCGA-A0-1000", "C3L-00004"),
        *("C3N-01362", "11LU013", "01BR001", "TCGA-A0-10001", "C3L-000041"),
        *("slide_7", "x-TCGA-A0-1000-01Z", "mine", "C3L-00004"),
    ]
