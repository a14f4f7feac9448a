import itertools
import shutil
from collections import Counter

import pytest

from wsi_jax.data.camelyon16 import TESTING, TRAINING, read_camelyon16, read_reference
from wsi_jax.data.cohort import Cohort, CohortError, Row, write_manifest


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def official(tmp_path, shared):
    folder = tmp_path / "official"
    for slide_id in TRAINING:
        touch(folder / "training" / slide_id.split("_")[0] / f"{slide_id}.tif")
    for slide_id in TESTING:
        touch(folder / "testing/images" / f"{slide_id}.tif")
    touch(folder / "training/lesion_annotations/tumor_001.xml")
    touch(folder / "testing/lesion_annotations/test_001.xml")
    reference = shared / "data/camelyon16/reference.csv"
    shutil.copyfile(reference, folder / "testing/reference.csv")
    return folder


def by_id(cohort):
    return {row.slide_id: row for row in cohort.rows}


def test_the_reference(shared):
    reference = read_reference(shared / "data/camelyon16/reference.csv")
    assert tuple(sorted(reference)) == TESTING
    assert (len(TESTING), len(TRAINING)) == (129, 270)
    assert Counter(r.label for r in reference.values()) == {"normal": 80, "tumor": 49}
    lesions = Counter(r.lesion for r in reference.values())
    assert lesions == {"None": 80, "Macro": 22, "Micro": 27}


def test_a_reference_with_a_header_and_training_slides(tmp_path):
    path = tmp_path / "reference.csv"
    path.write_text(
        "image,type,class,center\ntest_001.tif,tumor,micro,0\n"
        "test_002,normal,negative,1\nnormal_001,normal,negative,0\n"
    )
    reference = {"test_001": ("tumor", "Micro"), "test_002": ("normal", "")}
    assert read_reference(path) == reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("test_001,Tumor\ntest_002,1\n", "line 2: 'test_002,1'; write test_001"),
        ("test_001,Colon_aca,practice,Macro\n", "line 1: 'test_001,Colon_aca,pract"),
        ("test_001\n", "line 1: 'test_001'"),
        ("test_000,Normal\nx,1,2\n", "line 2: 'x,1,2'"),
        ("slide,label\ntest_002,Normal\nslide_3,Tumor\n", "line 3: 'slide_3,Tumor'"),
        ("test_001,Tumor\ntest_001,Tumor\n", "line 2: test_001 again"),
        ("slide,label\n", "no test slide in it"),
    ],
)
def test_no_line_of_a_reference_is_taken_for_a_header(tmp_path, text, message):
    """Neither the first, which would cost a test slide, nor a later one."""
    path = tmp_path / "reference.csv"
    path.write_text(text)
    with pytest.raises(CohortError, match=message):
        read_reference(path)


def test_the_official_layout(official, shared):
    metadata = shared / "data/camelyon16/metadata.csv"
    cohort = read_camelyon16(official, val=0.2, seed=0, metadata=metadata)
    counts = Counter((r.split, r.label) for r in cohort.rows)
    assert (counts["test", "normal"], counts["test", "tumor"]) == (80, 49)
    assert counts["train", "normal"] + counts["val", "normal"] == 159
    assert counts["train", "tumor"] + counts["val", "tumor"] == 111
    assert (counts["val", "normal"], counts["val", "tumor"]) == (32, 22)
    sites = Counter((r.split, r.label, r.site) for r in cohort.rows)
    assert sites["val", "normal", "RUMC"] == 20
    assert sites["val", "tumor", "UMCU"] == 8
    rows = by_id(cohort)
    assert rows["tumor_070"].site == "RUMC"
    assert rows["tumor_071"].site == rows["tumor_096"].site == "UMCU"  # corrected
    # metadata.csv calls it normal; reference.csv decides.
    assert rows["test_114"].label == "tumor"
    assert rows["tumor_001"].annotation_path.endswith("tumor_001.xml")
    assert rows["test_001"].annotation_path.endswith("test_001.xml")
    assert rows["tumor_002"].annotation_path == ""
    assert cohort == read_camelyon16(official, val=0.2, seed=0, metadata=metadata)


def test_both_layouts_give_one_cohort(official, tmp_path):
    aws = tmp_path / "aws"
    for path in official.rglob("*.tif"):
        touch(aws / "images" / path.name)
    touch(aws / "masks/tumor_001_mask.tif")
    touch(aws / "annotations/tumor_001.xml")
    (aws / "evaluation").mkdir()
    shutil.copyfile(
        official / "testing/reference.csv", aws / "evaluation/reference.csv"
    )
    one, two = (read_camelyon16(f, val=0.2, seed=3) for f in (official, aws))

    def facts(cohort):
        return [(r.slide_id, r.label, r.split) for r in cohort.rows]

    assert facts(one) == facts(two)
    tumor = by_id(two)["tumor_001"]
    assert tumor.mask_path.endswith("tumor_001_mask.tif")
    assert tumor.annotation_path


def test_missing_slides_are_named_or_left_out(official):
    (official / "training/tumor/tumor_005.tif").unlink()
    (official / "testing/images/test_007.tif").unlink()
    touch(official / "training/normal/normal_086.tif")
    message = r"2 of 399 .* test_007, tumor_005; copy .*--config\.data\.complete=F"
    with pytest.raises(CohortError, match=message):
        read_camelyon16(official, val=0.2, seed=0)
    rows = by_id(read_camelyon16(official, val=0.2, seed=0, complete=False))
    assert len(rows) == 397
    assert not {"tumor_005", "test_007", "normal_086"} & set(rows)


def test_a_practice_cohort(tmp_path):
    rows = []
    for kind, i in itertools.product(("normal", "tumor"), range(1, 7)):
        path = tmp_path / f"training/{kind}/{kind}_{i:03}.tif"
        touch(path)
        names = path.stem, str(path), kind, f"p{kind}{i // 2}", "train"
        rows.append(Row(*names, 0.5, f"h{i % 2}", cluster="k"))
    touch(tmp_path / "testing/images/test_001.tif")
    touch(tmp_path / "testing/images/test_002.tif")
    (tmp_path / "testing/reference.csv").write_text(
        "test_001,Normal,None,None\ntest_002,Tumor,IDC,Macro\n"
    )
    write_manifest(tmp_path / "slides.csv", Cohort(tuple(rows), ("normal", "tumor")))
    cohort = read_camelyon16(tmp_path, val=0.3, seed=0)
    assert Counter((r.split, r.label) for r in cohort.rows)["test", "tumor"] == 1
    row = by_id(cohort)["tumor_003"]
    assert (row.patient_id, row.mpp, row.site) == ("ptumor1", 0.5, "h1")
    (tmp_path / "testing/images/test_002.tif").unlink()
    with pytest.raises(CohortError, match="1 of 14 slides are missing: test_002"):
        read_camelyon16(tmp_path, val=0.3, seed=0)


def test_not_the_folder(tmp_path, official):
    with pytest.raises(CohortError, match="neither images/ nor training/"):
        read_camelyon16(tmp_path, val=0.2, seed=0)
    metadata = tmp_path / "metadata.csv"
    for column, message in (
        ("center", "no centre for .* and 388 more"),
        ("label", "it needs slide_name"),
    ):
        metadata.write_text(f"image,{column}\nnormal_001,0\n")
        with pytest.raises(CohortError, match=message):
            read_camelyon16(official, val=0.2, seed=0, metadata=metadata)
