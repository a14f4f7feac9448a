"""Files as the tools write them, to the letter, become the cohort they mean."""

import json
import zipfile

import pytest
from absl import logging

from wsi_jax.data import tool_manifests
from wsi_jax.data.cohort import CohortError, Row
from wsi_jax.data.lint import lint
from wsi_jax.data.split_files import (
    read_clam_split,
    read_sasha_split,
    read_torchmil_split,
    write_clam,
)
from wsi_jax.data.splits import Split, assign_splits
from wsi_jax.data.tool_manifests import Slides

DATASET = """case_id,slide_id,label
patient_0,slide_1,tumor_tissue
patient_0,slide_2,tumor_tissue
patient_1,slide_3,normal_tissue
patient_2,slide_4,normal_tissue
patient_3,007,tumor_tissue
patient_4,a.b-c,normal_tissue
"""
RAGGED = ",train,val,test\n0,slide_1,slide_4,007\n1,slide_2,,a.b-c\n2,slide_3,,\n"
BOOL = (
    ",train,val,test\nslide_1,True,False,False\nslide_2,True,False,False\n"
    "slide_3,True,False,False\nslide_4,False,True,False\n007,False,False,True\n"
    "a.b-c,False,False,True\n"
)
SPLITS = {
    "slide_1": "train", "slide_2": "train", "slide_3": "train", "slide_4": "val",
    "007": "test", "a.b-c": "test",
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def to(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return to


@pytest.fixture
def slides(tmp_path):
    """A folder of empty files with slides' names, here and there."""
    names = ("slide_1.svs", "deep/er/slide_2.tif", "deep/slide_3.ndpi", "slide_4.svs")
    for name in (*names, "007.tiff", "a.b-c.mrxs", "slide_1.txt", "slide_9.svs"):
        path = tmp_path / "slides" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Slides(folder=tmp_path / "slides")


@pytest.fixture
def warned(monkeypatch):
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *a: messages.append(text % a))
    return messages


def splits_of(cohort):
    return {row.slide_id: row.split for row in cohort.rows}


def clam(write, text):
    return tool_manifests.from_clam, (
        write("dataset.csv", DATASET),
        write("splits_0.csv", text),
    )


def sasha(write):
    lists = {f"{split}_names": [] for split in ("train", "val", "test")}
    for name, split in SPLITS.items():
        lists[f"{split}_names"].append(name)
    split = write("split_1.json", json.dumps(lists))
    return tool_manifests.from_sasha, (write("camelyon16.csv", DATASET), split)


def torchmil(write):
    lines = [f"{name},{split}" for name, split in SPLITS.items()]
    split = write("splits.csv", "\n".join(["bag_name,split", *lines]))
    labels = write("labels.csv", DATASET.replace("slide_id", "bag_name"))
    return tool_manifests.from_torchmil, (labels, split)


def streaming_clam(write, name):
    label = {line.split(",")[1]: line.split(",")[2] for line in DATASET.splitlines()}
    files = []
    for split in ("train", "val", "test"):
        lines = [f"{n},{label[n]}" for n, one in SPLITS.items() if one == split]
        files.append(write(f"{split}_0.csv", "\n".join([f"{name},label", *lines])))
    return tool_manifests.from_streaming_clam, files


@pytest.mark.parametrize(
    "tool",
    [
        lambda write: clam(write, RAGGED),
        lambda write: clam(write, BOOL),
        lambda write: clam(write, BOOL.replace("True", "true").lower()),
        lambda write: clam(write, RAGGED.replace("\n", "\r\n")),
        sasha,
        torchmil,
        lambda write: streaming_clam(write, "slide"),  # the code's
        lambda write: streaming_clam(write, "slide_id"),  # the README's
    ],
)
def test_files_of_every_tool_become_one_cohort(write, slides, tool):
    read, files = tool(write)
    cohort = read(*files, slides)
    assert splits_of(cohort) == SPLITS
    assert cohort.classes == ("normal_tissue", "tumor_tissue")
    rows = {row.slide_id: row for row in cohort.rows}
    path = str(slides.folder / "deep/er/slide_2.tif")
    patient = "slide_2" if len(files) == 3 else "patient_0"  # StreamingCLAM has none
    assert rows["slide_2"] == Row("slide_2", path, "tumor_tissue", patient, "train")
    assert rows["a.b-c"].path.endswith("a.b-c.mrxs")


def test_labels_of_another_column_and_order(write, slides):
    """TCGA's: ids with an extension, labels under another name, one to leave out.
    Beside an empty cell pandas makes 12.0 of 12 in a column of its own."""
    text = DATASET.replace("label", "oncotree_code").replace("slide_1,", "slide_1.svs,")
    slides.label, slides.classes = "oncotree_code", ("tumor_tissue", "normal_tissue")
    (slides.folder / "12.svs").touch()
    table = write("dataset.csv", text.replace("slide_4", "12"))
    split = write("splits_0.csv", RAGGED.replace("slide_4", "12.0"))
    cohort = tool_manifests.from_clam(table, split, slides)
    expected = SPLITS | {"12": "val"}
    del expected["slide_4"]
    assert splits_of(cohort) == expected
    assert cohort.classes == slides.classes


TCGA = """slide_id,slide_id_short,slide_id_hash,case_id,patient_id,\
slide_md5sum,cancer_type,label
TCGA-05-4244-01Z-00-DX1.d4ff,TCGA-05-4244-01Z-00-DX1,d4ff,c1,TCGA-05-4244,00,LUAD,0
TCGA-05-4244-01Z-00-DX2.e5aa,TCGA-05-4244-01Z-00-DX2,e5aa,c2,TCGA-05-4244,01,LUAD,0
TCGA-05-4245-01Z-00-DX1.b1b1,TCGA-05-4245-01Z-00-DX1,b1b1,c3,TCGA-05-4245,02,LUAD,0
TCGA-18-3406-01Z-00-DX1.b2b2,TCGA-18-3406-01Z-00-DX1,b2b2,c4,TCGA-18-3406,03,LUSC,1
TCGA-18-3407-01Z-00-DX1.b3b3,TCGA-18-3407-01Z-00-DX1,b3b3,c5,TCGA-18-3407,04,LUSC,1
TCGA-18-3408-01Z-00-DX1.b4b4,TCGA-18-3408-01Z-00-DX1,b4b4,c6,TCGA-18-3408,05,LUSC,1
"""


def test_sashas_tcga_split_leaks_patients_and_lint_says_so(write, tmp_path):
    """A patient with two slides, one in train and one in test, as theirs have."""
    ids = [line.split(",")[0] for line in TCGA.splitlines()[1:]]
    for name in ids:
        (tmp_path / f"{name}.svs").write_text(name)
    lists = {"train_names": [ids[0], ids[3]], "val_names": []}
    lists["test_names"] = [ids[1], ids[4]]
    split = write("split_1.json", json.dumps(lists))
    slides = Slides(folder=tmp_path, label="cancer_type")
    cohort = tool_manifests.from_sasha(write("tcga.csv", TCGA), split, slides)
    assert cohort.classes == ("LUAD", "LUSC")
    assert {len(row.patient_id) for row in cohort.rows} == {12}
    with pytest.raises(CohortError, match="patient 'TCGA-05-4244' is in 'test' and"):
        lint(cohort)
    write("split_1.json", json.dumps(lists | {"test_names": [ids[2], ids[4]]}))
    lint(tool_manifests.from_sasha(tmp_path / "tcga.csv", split, slides))


def test_trident(write, slides, warned):
    text = "wsi,mpp\nslide_1.svs,0.25\ndeep/er/slide_2.tif,0.5\nslide_4.svs,\n"
    labels = write("labels.csv", DATASET)
    cohort = tool_manifests.from_trident(labels, write("wsis.csv", text), slides)
    assert [(row.slide_id, row.mpp, row.patient_id) for row in cohort.rows] == [
        ("slide_1", 0.25, "patient_0"),
        ("slide_2", 0.5, "patient_0"),
        ("slide_4", None, "patient_2"),
    ]
    assert cohort.rows[1].path == str(slides.folder / "deep/er/slide_2.tif")
    assert "3 slides left out" in warned[0]
    wsis = write("wsis.csv", text.replace("0.5", "20x"))
    with pytest.raises(CohortError, match=r"wsis\.csv, line 3: mpp '20x'"):
        tool_manifests.from_trident(labels, wsis, slides)
    wsis = write("wsis.csv", text.replace("deep/er/", ""))
    with pytest.raises(CohortError, match=r"1 of 3 .*: slide_2; .*--allow-missing"):
        tool_manifests.from_trident(labels, wsis, slides)


def test_clam_reads_what_is_written(write, slides, tmp_path):
    """Ours to CLAM's and back, by both of its forms; its descriptor counts."""
    table, split = write("dataset.csv", DATASET), write("splits_0.csv", RAGGED)
    cohort = tool_manifests.from_clam(table, split, slides)
    out = tmp_path / "clam"
    write_clam(out, cohort, 3)
    for name in ("splits_3.csv", "splits_3_bool.csv"):
        back = tool_manifests.from_clam(out / "dataset.csv", out / name, slides)
        assert back == cohort
    assert (out / "dataset.csv").read_text() == DATASET
    assert (out / "splits_3.csv").read_text() == RAGGED
    assert (out / "splits_3_bool.csv").read_text() == BOOL
    counts = (out / "splits_3_descriptor.csv").read_text()
    assert counts == ",train,val,test\nnormal_tissue,1,1,1\ntumor_tissue,2,0,1\n"
    open_ = tool_manifests.from_clam(table, None, slides)
    assert set(splits_of(open_).values()) == {""}
    with pytest.raises(CohortError, match="6 slides have no split"):
        write_clam(out, open_)


def test_slides_outside_the_folder_or_without_a_split_are_left_out(
    write, slides, warned
):
    table = write("dataset.csv", DATASET.replace("slide_4", "slide_5"))
    with pytest.raises(CohortError, match=r"1 of 6 slides are missing: slide_5"):
        tool_manifests.from_clam(table, None, slides)
    slides.complete = False
    cohort = tool_manifests.from_clam(table, None, slides)
    assert set(splits_of(cohort)) == set(SPLITS) - {"slide_4"}
    assert "slide_5" in warned[0]
    split = write("splits_0.csv", RAGGED.replace("slide_4", ""))
    cohort = tool_manifests.from_clam(write("dataset.csv", DATASET), split, slides)
    assert set(splits_of(cohort)) == set(SPLITS) - {"slide_4"}
    assert "no split names: slide_4" in warned[1]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_clam_split, RAGGED.replace("007", "slide_1"), "'slide_1' is in 'train'"),
        (read_clam_split, RAGGED.replace(",val", ",valid"), "no column 'val'"),
        (read_clam_split, ",train,val,test\n0,,,\n", "names no slide"),
        (read_sasha_split, "{}", "train_names"),
        (read_sasha_split, '{"train_names": 3}', "not a JSON of train_names"),
        (read_sasha_split, "[" * 100_000, "not a JSON of train_names"),
        (read_torchmil_split, "slide,split\na,train\n", "it is bag_name,split"),
        (read_torchmil_split, "bag_name,split\na,tran\n", "split 'tran'"),
    ],
)
def test_a_bad_split_file_is_named(write, read, text, message):
    with pytest.raises(CohortError, match=rf"(?s)file: .*{message}"):
        read(write("file", text))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("slide_id", "slides", "no column 'slide_id' or 'slide'"),
        ("label", "class", "no column 'label' .*--label"),
        ("slide_2", "slide_1", "line 3: slide 'slide_1' again"),
        ("patient_1,slide_3,normal_tissue", "p,slide_3,", "line 4: 'label' is empty"),
        ("slide_3", "", "line 4: 'slide_id' is empty"),
        ("slide_3", "a:b", "line 4: slide_id 'a:b' names files, and no : may be in it"),
        ("patient_2", "nan", "line 5: patient 'nan' is a word for a missing value"),
        ("tumor_tissue\npatient_1", "NA\npatient_1", "line 3: label 'NA' is a word"),
        ("tumor_tissue\npatient_1", "Tumor_tissue\npatient_1", "line 3: label 'Tumor_"),
        ("slide_3", "slide_x", "1 slides have a split and no label: slide_3"),
    ],
)
def test_a_bad_dataset_is_named(write, slides, old, new, message):
    table = write("dataset.csv", DATASET.replace(old, new))
    with pytest.raises(CohortError, match=message):
        tool_manifests.from_clam(table, write("splits_0.csv", RAGGED), slides)


def test_a_real_split_of_camelyon16(shared):
    """Ragged, with columns of labels besides: the official test slides."""
    split_of = read_clam_split(shared / "data/splits/c16_TransMIL_fold0.csv")
    official = (shared / "data/camelyon16/reference.csv").read_text().splitlines()
    tested = {name for name, split in split_of.items() if split == "test"}
    assert tested == {line.split(",")[0] for line in official}
    trained = set(split_of) - tested
    assert len(trained) == 270
    assert all(name.startswith(("normal_", "tumor_")) for name in trained)


def test_a_real_table_of_tcga(shared, tmp_path):
    """Lung slides, their labels under another name, several of one patient."""
    path = shared / "data/splits/tcga_lung_subset.csv.zip"
    with zipfile.ZipFile(path) as archive:
        table = tmp_path / "tcga_lung.csv"
        table.write_bytes(archive.read(archive.namelist()[0]))
    for line in table.read_text().splitlines()[1:]:
        name = line.split(",")[2]
        (tmp_path / name).write_text(name)
    slides = Slides(folder=tmp_path, label="oncotree_code")
    cohort = tool_manifests.from_clam(table, None, slides)
    assert cohort.classes == ("LUAD", "LUSC")
    assert all(row.slide_id.startswith(row.patient_id) for row in cohort.rows)
    patients = {row.patient_id for row in cohort.rows}
    assert len(patients) < len(cohort.rows) == len(list(tmp_path.glob("*.svs")))
    assert lint(assign_splits(cohort, Split())).missing == ()
