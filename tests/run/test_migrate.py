"""A project of CLAM or TRIDENT, as it lies: same folds, both results, CLAM's forms."""

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from clam_project import write_bag, write_project, write_split, write_table

from wsi_jax.cli import app
from wsi_jax.data.cohort import Cohort, Row, in_split
from wsi_jax.nets.attention import AttentionHead
from wsi_jax.nets.export_clam_weights import clam_tensors
from wsi_jax.run.migrate.migrate import migrate, table
from wsi_jax.run.migrate.project import Options, read_project
from wsi_jax.run.migrate.results import Results, compare
from wsi_jax.run.run_folder import read_csv


@pytest.fixture
def clam(tmp_path):
    return tmp_path / "clam", write_project(tmp_path / "clam")


def names_of(cohort, split):
    return [row.slide_id for row in in_split(cohort, split).rows]


def test_folds_are_those_of_the_project(clam):
    folder, splits = clam
    project = read_project(folder, Options())
    assert project.features == folder / "FEATURES/h5_files"
    assert project.classes == ("normal_tissue", "tumor_tissue")
    assert len(project.folds) == 2
    for k, parts in splits.items():
        for split, part in zip(("train", "val", "test"), parts, strict=True):
            assert names_of(project.folds[k], split) == sorted(part)
    assert project.folds[0].rows[3].patient_id == "patient_slide_03"


def test_pickles_are_named_and_never_opened(clam):
    folder, _ = clam
    notes = "\n".join(read_project(folder, Options()).notes)
    assert f"{folder}/FEATURES/pt_files: 24 .pt: pickles of PyTorch, never" in notes
    assert "2 .pkl: pickles, never opened" in notes


def test_what_is_not_understood_is_listed_by_name(clam):
    folder, _ = clam
    write_table(folder / "notes.csv", ("a", "b"), [(1, 2)])
    strange = folder / "eval_results/EVAL_a/fold_1.csv"
    write_table(strange, ("slide_id", "Y"), [("slide_00", 0), ("slide_02", 1)])
    (folder / "FEATURES/h5_files/slide_05.h5").unlink()
    write_split(
        folder / "splits/task_100/splits_2.csv", (["slide_00"], ["slide_00"], [])
    )
    notes = "\n".join(read_project(folder, Options()).notes)
    assert f"{folder / 'notes.csv'}: not understood" in notes
    assert f"{strange}: not understood" in notes
    assert "splits_2.csv: slide 'slide_00' is in 'train' and in 'val'" in notes
    assert "fold 0: without label or features: 1 slides, slide_05" in notes


def test_trident_without_splits_gets_one_that_is_drawn(tmp_path):
    folder = tmp_path / "20x_256px_0px_overlap/features_uni_v1"
    for i in range(20):
        write_bag(folder / f"s{i}.h5", np.ones((1, 5, 3)), np.zeros((5, 2), int))
    patches = tmp_path / "20x_256px_0px_overlap/patches"
    patches.mkdir()
    with h5py.File(patches / "s0_patches.h5", "w") as f:
        f["coords"] = np.zeros((5, 2), int)
    lines = [(f"s{i}", "ab"[i % 2]) for i in range(20)]
    write_table(tmp_path / "labels.csv", ("slide_id", "label"), lines)
    project = read_project(tmp_path, Options())
    assert project.features == folder
    assert len(names_of(project.folds[0], "train")) == 14
    assert any("of these slides: one is drawn" in note for note in project.notes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("FEATURES/h5_files", "no folder of features.*a pickle, which is never opened"),
        ("dataset_csv/mine.csv", "no CSV of slide_id and label names a slide"),
    ],
)
def test_what_is_missing_is_named_with_the_mend(clam, spoil, message):
    folder, _ = clam
    (folder / spoil).rename(folder.parent / "elsewhere")
    with pytest.raises(ValueError, match=message):
        read_project(folder, Options())


def test_ids_that_pandas_has_made_floats_are_those_of_the_table(tmp_path):
    names = [f"{100 + i}" for i in range(12)]
    for name in names:
        write_bag(tmp_path / f"f/{name}.h5", np.ones((3, 2)), np.zeros((3, 2), int))
    lines = [(name, "ab"[i % 2]) for i, name in enumerate(names)]
    write_table(tmp_path / "labels.csv", ("slide_id", "label"), lines)
    floats = [f"{name}.0" for name in names]
    parts = names[:6], floats[6:9], floats[9:]
    write_split(tmp_path / "s/splits_0.csv", parts)
    write_split(tmp_path / "dummies/splits_0.csv", (["x"], ["y"], ["z"]))
    project = read_project(tmp_path, Options())
    assert names_of(project.folds[0], "test") == names[9:]
    (note,) = project.notes
    assert "dummies/splits_0.csv: names no slide with label and features" in note


def test_what_a_command_has_written_is_no_part_of_the_project(clam):
    folder, _ = clam
    out = folder / "runs/migrated"
    write_table(out / "fold_0.csv", ("slide_id", "label"), [("slide_00", "a")])
    with pytest.raises(ValueError, match="2 CSVs of labels"):
        read_project(folder, Options())
    project = read_project(folder, Options(out=str(out)))
    assert project.classes == ("normal_tissue", "tumor_tissue")


def test_the_reason_why_labels_are_refused_is_given(clam):
    folder, _ = clam
    lines = [("slide_00", "a"), ("slide_00", "b")]
    write_table(folder / "dataset_csv/mine.csv", ("slide_id", "label"), lines)
    with pytest.raises(ValueError, match="line 3: slide 'slide_00' again"):
        read_project(folder, Options())
    for label, message in {
        "NA": "line 2: label 'NA' is a word for a missing value; leave the line out, "
        "or write another word",
        "": "no column 'label' .*name the column of the labels with --label-column",
    }.items():
        header = ("slide_id", "label" if label else "grade")
        lines = [("slide_00", label or "1"), ("slide_01", "b")]
        write_table(folder / "dataset_csv/mine.csv", header, lines)
        labels = str(folder / "dataset_csv/mine.csv")
        with pytest.raises(ValueError, match=message) as error:
            read_project(folder, Options(labels=labels))
        assert "--classes" not in str(error.value)
    with pytest.raises(ValueError, match=r"--features .*splits: no SLIDE\.h5"):
        read_project(folder, Options(features=str(folder / "splits")))


def test_of_several_one_is_to_be_chosen(clam):
    folder, (*_, last) = clam[0], clam[1].values()
    write_split(folder / "splits/other/splits_0.csv", last)
    with pytest.raises(ValueError, match=r"2 folders of splits.*choose one with --spl"):
        read_project(folder, Options())
    chosen = read_project(folder, Options(splits=str(folder / "splits/other")))
    assert names_of(chosen.folds[0], "test") == sorted(last[2])


def test_a_label_that_is_the_other_way_round_turns_their_probabilities(clam):
    folder, _ = clam
    project = read_project(folder, Options())
    (by_slide,) = [one for one in project.results if one.slides]
    assert by_slide.model == "clam_sb"
    path = folder / "eval_results/EVAL_a/fold_0.csv"
    lines = [
        (line["slide_id"], 1 - float(line["Y"]), 0, line["p_1"], line["p_0"])
        for line in read_csv(path)
    ]
    write_table(path, ("slide_id", "Y", "Y_hat", "p_0", "p_1"), lines)
    (turned,) = [one for one in read_project(folder, Options()).results if one.slides]
    for name, p in by_slide.slides[0].items():
        np.testing.assert_array_equal(turned.slides[0][name], p)
    lines[0] = (*lines[0][:3], "nan", "nan")
    write_table(path, ("slide_id", "Y", "Y_hat", "p_0", "p_1"), lines)
    project = read_project(folder, Options())
    assert not any(0 in one.slides for one in project.results)
    assert f"{path}: not understood, not used" in project.notes


def test_the_same_predictions_differ_by_nothing(clam):
    project = read_project(clam[0], Options())
    cohort = project.folds[0]
    (theirs,) = [one for one in project.results if one.slides]
    same = compare(theirs, theirs.slides, cohort)
    assert (same.difference, same.lo, same.hi) == (0, 0, 0)
    assert same.theirs == same.ours < 1
    better = {
        k: {n: np.eye(2)[int(n[-2:]) % 2] for n in own}
        for k, own in theirs.slides.items()
    }
    gap = compare(theirs, better, cohort)
    assert gap.ours == 1
    assert gap.difference == pytest.approx(1 - gap.theirs)
    assert gap.lo < gap.difference < gap.hi
    folds = compare(Results("x", "", {}, {0: 0.5, 1: 0.6}), better, cohort)
    assert folds.difference == pytest.approx(0.45)
    part = compare(Results("x", "", {}, {0: 0.5, 1: np.nan}), better, cohort)
    assert (part.difference, part.note) == (0.5, "by 1 fold")
    other = {0: {name: p for name, p in better[1].items() if name not in better[0]}}
    assert compare(Results("x", "", other, {0: 0.5}), better, cohort) is None
    half = 12.706 * np.std([0.5, 0.4], ddof=1) / 2**0.5
    assert folds.lo == pytest.approx(0.45 - half, rel=1e-3)


def test_of_three_classes_the_mean_against_the_rest_is_compared():
    rng = np.random.default_rng(0)
    rows = [Row(f"s{i}", "", "abc"[i % 3], f"p{i}", "test") for i in range(30)]
    cohort = Cohort(tuple(rows), ("a", "b", "c"))
    right = {row.slide_id: np.eye(3)["abc".index(row.label)] for row in rows}
    wrong = {name: p + rng.normal(0, 1, 3) for name, p in right.items()}
    gap = compare(Results("x", "", {0: wrong}, {}), {0: right}, cohort)
    assert gap.ours == 1
    assert gap.theirs + gap.difference == pytest.approx(1)
    assert 0 < gap.lo < gap.difference < gap.hi


def test_exported_weights_are_clams_own(shared, key):
    """Names and shapes of the reference's, and its equations give our logits."""
    head = AttentionHead(2)
    x = np.random.default_rng(0).normal(size=(9, 512)).astype(np.float32)
    batch = jnp.asarray(x)[None]
    net = head.init(key, batch)
    prior = (0.5, -0.5)
    tensors = clam_tensors(net["params"], prior)
    with np.load(shared / "fixtures/clam/clam_sb.npz") as theirs:
        shapes = {
            name.removeprefix("param."): theirs[name].shape
            for name in theirs
            if name.startswith("param.")
        }
    assert {name: a.shape for name, a in tensors.items()} == shapes
    logits, attention = head.apply(net, batch)
    p, weights = torch_free_clam(tensors, x)
    np.testing.assert_allclose(
        p, jax.nn.softmax(logits[0] + jnp.array(prior)), rtol=1e-4
    )
    np.testing.assert_allclose(weights, attention[0, 0], rtol=1e-4)
    several = clam_tensors(AttentionHead(3, branches=3).init(key, batch)["params"])
    assert several["classifiers.2.weight"].shape == (1, 512)
    assert several["attention_net.3.attention_c.weight"].shape == (3, 256)


def torch_free_clam(tensors, x):
    """CLAM_SB's probabilities and raw attention, by numpy."""
    linear = lambda name, h: h @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
    h = np.maximum(linear("attention_net.0", x), 0)
    a = np.tanh(linear("attention_net.3.attention_a.0", h))
    b = 1 / (1 + np.exp(-linear("attention_net.3.attention_b.0", h)))
    raw = linear("attention_net.3.attention_c", a * b)[:, 0]
    softmax = lambda v: np.exp(v - v.max()) / np.exp(v - v.max()).sum()
    return softmax(linear("classifiers", softmax(raw) @ h)), softmax(raw)


def test_what_a_run_refuses_is_in_the_words_of_the_command(clam, tmp_path):
    for i in range(4):
        with h5py.File(clam[0] / f"FEATURES/h5_files/slide_{i:02}.h5", "a") as f:
            f["features"][...] = np.nan
    words = ["migrate", str(clam[0]), "--out", str(tmp_path / "out")]
    for more, share in ((), "0.1"), (["--max-refused", "0.15"], "0.15"):
        with pytest.raises(SystemExit) as error:
            app([*words, *more], standalone_mode=False)
        assert "--config" not in str(error.value)
        assert f"more than --max-refused={share}; mend them" in str(error.value)


@pytest.mark.long
def test_both_methods_train_and_go_back_out(clam, tmp_path):
    folder, out = clam[0], tmp_path / "out"
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    lines = migrate(folder, out, Options(), steps=4, export=True)
    assert {p: p.read_bytes() for p in folder.rglob("*.*") if p.is_file()} == before
    methods = [(line["method"], line["by"]) for line in lines]
    assert methods == [
        ("abmil", "by 2 folds"), ("clam_sb", "by 16 slides"), ("clam_sb", "by 2 folds"),
    ]  # fmt: skip
    assert read_csv(out / "comparison.csv") == lines
    assert "theirs" in table(lines)
    for name in ("abmil", "clam_sb"):
        where = out / "export" / name / "fold_1"
        tensors = safetensors.numpy.load_file(where / "model.safetensors")
        for line in read_csv(out / name / "fold_1/predictions.csv"):
            slide = line["slide_id"]
            with h5py.File(folder / f"FEATURES/h5_files/{slide}.h5") as f:
                x, xy = f["features"][()].astype(np.float16), f["coords"][()]
            p, attention = torch_free_clam(tensors, x.astype(np.float32))
            assert float(line["p_tumor_tissue"]) == pytest.approx(p[1], abs=1e-4)
            with h5py.File(where / f"{slide}_blockmap.h5") as f:
                np.testing.assert_allclose(
                    f["attention_scores"][:, 0], attention, rtol=1e-3
                )
                np.testing.assert_array_equal(f["coords"], xy)
            scores = read_csv(where / f"{slide}.csv")
            assert [int(s["x"]) for s in scores] == xy[:, 0].tolist()
