import pytest

from wsi_jax.data.cohort import Cohort, CohortError, Row
from wsi_jax.data.lint import format_counts, lint
from wsi_jax.files import MIB


def rows(tmp_path, n=12):
    """Two slides of each class in each split, each with a file of its own."""
    made = []
    for i in range(n):
        path = tmp_path / f"{i}.tif"
        path.write_bytes(b"%02d" % i * MIB)
        split = ("train", "val", "test")[i % 3]
        label = ("normal", "tumor")[i // 3 % 2]
        made.append(Row(f"s{i}", str(path), label, f"p{i}", split, site="R"))
    return made


def change(row, **new):
    return Row(**vars(row) | new)


def check(rows, pretrained_on=()):
    return lint(Cohort(tuple(rows), ("normal", "tumor")), pretrained_on)


def test_a_clean_cohort_is_counted_and_missing_files_are_reported(tmp_path):
    slides = rows(tmp_path)
    slides[0] = change(slides[0], site="U")
    summary = check(slides)
    assert summary.missing == ()
    assert len(summary.counts) == 7
    assert summary.counts[0] == ("train", "normal", "R", 1, 1)
    assert sum(count.slides for count in summary.counts) == 12
    header, *_ = format_counts(summary).splitlines()
    assert header.split() == list(summary.counts[0]._fields)
    (tmp_path / "4.tif").unlink()
    summary = check(slides)
    assert summary.missing == (str(tmp_path / "4.tif"),)
    assert "missing files: 1" in format_counts(summary)


@pytest.mark.parametrize(
    ("which", "new", "message"),
    [
        (1, {"patient_id": "p0"}, "patient 'p0' is in 'train' and 'val'"),
        (1, {"slide_id": "s0"}, "slide_id 's0' is in 'train' and 'val'"),
        (3, {"label": "normla"}, "label 'normla', which is not among"),
        (0, {"split": ""}, "1 slides have no split"),
        (0, {"split": "tets"}, "1 slides have split 'tets'"),
        (
            1,
            {"slide_id": "TCGA-A0-1000-01Z-00-DX1"},  # whatever the patients are called
            "patient 'TCGA-A0-1000' is in 'train' and 'val'",
        ),
    ],
)
def test_each_fault_is_named(tmp_path, which, new, message):
    slides = rows(tmp_path)
    slides[6] = change(slides[6], slide_id="TCGA-A0-1000-01Z-00-DX0")
    slides[which] = change(slides[which], **new)
    with pytest.raises(CohortError, match=r"the cohort has \d faults") as error:
        check(slides)
    assert message in str(error.value)


def test_one_file_under_two_names_and_every_fault_is_listed(tmp_path):
    slides = rows(tmp_path)
    (tmp_path / "link.tif").symlink_to(tmp_path / "0.tif")
    slides[1] = change(slides[1], patient_id="p0")
    slides[2] = change(slides[2], path=str(tmp_path / "link.tif"))
    message = r"has 2 faults:\n  - (?s:.*)\n  - .*'s0' .train, normal., 's2' .test, nor"
    with pytest.raises(CohortError, match=f"{message}mal. have the same path"):
        check(slides)


def test_two_files_of_one_dicom_series(tmp_path):
    """Each of them opens as the whole slide."""
    slides = rows(tmp_path)
    for i in (0, 2):
        path = tmp_path / f"{i}.dcm"
        head = bytes(128) + b"DICM\x20\0\x0e\0UI\x06\x001.2.3\0"
        path.write_bytes(head + bytes([i]))
        slides[i] = change(slides[i], path=str(path))
    with pytest.raises(CohortError, match=r"'s0' .train.*'s2' .test.*DICOM series"):
        check(slides)


def test_a_copy_is_a_fault_across_splits_or_labels(tmp_path):
    """One that differs at its end alone is no copy."""
    slides = rows(tmp_path)
    data = (tmp_path / "0.tif").read_bytes()
    (tmp_path / "6.tif").write_bytes(data)  # of the same split and label
    (tmp_path / "2.tif").write_bytes(data[:-1] + b"!")
    check(slides)
    changed = [*slides[:6], change(slides[6], label="tumor"), *slides[7:]]
    with pytest.raises(CohortError, match="same content"):
        check(changed)
    (tmp_path / "2.tif").write_bytes(data)
    with pytest.raises(CohortError, match=r"'s0' .train.*'s2' .test.*same content"):
        check(slides)


def test_a_class_or_a_split_that_is_too_small(tmp_path):
    slides = rows(tmp_path)
    no_tumor = [r for r in slides if (r.split, r.label) != ("test", "tumor")]
    with pytest.raises(CohortError, match="'test' has no slide of class 'tumor'"):
        check(no_tumor)
    with pytest.raises(CohortError, match="split 'val' has 1 slides"):
        check([r for r in slides if r.split != "val"] + [slides[1]])
    with pytest.raises(CohortError, match="split 'train' has 0 slides"):
        check([r for r in slides if r.split != "train"])
    check([r for r in slides if r.split != "val"])


def test_clusters_may_be_shared_by_train_and_val_only_and_not_learnt_from(tmp_path):
    slides = rows(tmp_path)
    shared = [change(r, cluster=f"k{r.split == 'test'};m{r.slide_id}") for r in slides]
    check(shared)
    shared[2] = change(shared[2], cluster="x;kFalse")
    message = "cluster 'kFalse' is in 'test' and 'train or"
    with pytest.raises(CohortError, match=message):
        check(shared)
    check(slides, {"p0", "s1"})
    with pytest.raises(CohortError, match=r"test slide 's2': .* learnt from \['p2'\]"):
        check(slides, {"p2"})


def test_the_counts_say_whose_the_slides_are_where_nobody_did(tmp_path):
    assert "patients:" not in format_counts(check(rows(tmp_path)))
    own = [change(row, patient_id=row.slide_id) for row in rows(tmp_path)]
    note = "patients: every slide counts as a patient of its own"
    assert note in format_counts(check(own))
    coded = [
        change(row, slide_id=f"C3L-{i:05}-21", patient_id=f"C3L-{i:05}")
        for i, row in enumerate(own)
    ]
    note = "patients: 12 of 12 slides have the patient of their barcode"
    assert format_counts(check(coded)).splitlines()[-1] == note
    note = "10 of 12 slides have the patient of their barcode; 2 of 12 slides count as"
    assert note in check(coded[:10] + own[10:]).patients
