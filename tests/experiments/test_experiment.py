"""Cohorts in all their states: bad slides, folds, classes in any order."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from wsi_jax.config_fields import from_plain
from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run import write_report
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.run.predictor import load
from wsi_jax.run.run_folder import RunError, read_csv, write_csv


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def bad(tiny, manifest, tmp_path_factory):
    """A run whose cohort has one slide of junk and one whose file is gone."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "junk.tif").write_bytes(b"II*\0 and then nothing of sense")
    rows = table(manifest)
    for row in rows:
        row["path"] = str(manifest.parent / row["path"])
        row["mask_path"] = row["annotation_path"] = ""
    rows[0]["path"] = str(folder / "junk.tif")
    rows[-2]["path"] = str(folder / "gone.tif")
    with open(folder / "slides.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config = tiny()
    config.data = Manifest(
        manifest=str(folder / "slides.csv"), classes=("tumor", "normal")
    )
    config.heatmaps = 0
    config.train.steps = 4
    experiment.run(config, folder / "run")
    return folder / "run", config


def test_classes_come_in_the_order_asked_for(bad):
    """The second is the positive one."""
    folder, _ = bad
    lines = table(folder / "predictions.csv")
    assert list(lines[0])[-2:] == ["p_tumor", "p_normal"]
    metrics = json.loads((folder / "metrics.json").read_text())
    p = np.array([float(line["p_normal"]) for line in lines])
    called = np.array([line["prediction"] == "normal" for line in lines])
    np.testing.assert_array_equal(called, p >= metrics["test.threshold"])
    normal = np.array([line["label"] == "normal" for line in lines])
    assert metrics["test.sensitivity"] == pytest.approx(called[normal].mean())
    assert metrics["test.specificity"] == pytest.approx(1 - called[~normal].mean())


def test_probabilities_are_of_the_cohort_and_not_of_its_class_weights(bad):
    """In the run, and opened again: it has learnt from four tumours of nine slides."""
    folder, config = bad
    assert config.train.class_weights
    predictor = load(folder)
    log_prior = np.log([8 / 9, 10 / 9])
    np.testing.assert_allclose(predictor.card.log_prior, log_prior, rtol=1e-12)
    older = json.loads((folder / "model.json").read_text())
    del older["log_prior"]
    assert from_plain(older).log_prior == ()
    slides = {s["slide_id"]: s["path"] for s in table(folder / "slides.csv")}
    line = table(folder / "predictions.csv")[0]
    predict = lambda: predictor.predict(slides[line["slide_id"]]).probabilities
    for name, p in predict().items():
        assert p == pytest.approx(float(line[f"p_{name}"]), abs=1e-5)
    odds = lambda p: p["tumor"] / p["normal"]
    mended = odds(predict())
    predictor.card = dataclasses.replace(predictor.card, log_prior=())
    assert mended == pytest.approx(0.8 * odds(predict()), rel=1e-5)


def test_too_many_bad_slides_stop_the_run_before_the_first_tile(bad, tmp_path):
    _, config = bad
    config = dataclasses.replace(config, max_refused=0.05, features="")
    with pytest.raises(
        RunError, match=r"2 of 20 .*--config\.max_refused=0\.05"
    ) as caught:
        experiment.run(config, tmp_path / "run")
    lines = table(tmp_path / "run" / "slides.csv")
    refused = [s["reason"] for s in lines if s["status"] == "refused"]
    assert [f"  - {r}" for r in refused] == str(caught.value).splitlines()[1:]
    assert len(refused) == 2
    assert not list((tmp_path / "run").rglob("*.h5"))


def test_folds_of_three_classes_test_every_slide_once(short, edited, tmp_path):
    """Invented labels; a fold is trained, chosen and tested on slides of its own."""
    names = ("blue", "green", "red")
    relabel = lambda row: row | {
        "label": names[int(row["patient_id"][-3:]) % 3], "split": "", "fold": "",
        "cluster": "",
    }  # fmt: skip
    short.data = Manifest(manifest=str(edited(relabel)), folds=3)
    short.train.steps = 2
    experiment.run(short, tmp_path)
    lines = table(tmp_path / "predictions.csv")
    assert sorted(line["slide_id"] for line in lines) == sorted(
        row["slide_id"] for row in table(short.data.manifest)
    )
    for line in lines:
        p = [float(line[f"p_{name}"]) for name in names]
        assert sum(p) == pytest.approx(1, abs=2e-6)
        assert line["prediction"] == names[int(np.argmax(p))]
    cards = sorted(tmp_path.glob("fold_*/model.json"))
    assert [card.parent.name for card in cards] == ["fold_0", "fold_1", "fold_2"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["test.n"] == 20
    assert "test.threshold" not in metrics


def test_folds_of_a_cohort_with_a_test_split_share_it(short):
    short.data.folds = 2
    cohort = short.data.cohort()
    assert {row.fold for row in cohort.rows if row.split == "test"} == {""}
    assert {row.fold for row in cohort.rows if row.split != "test"} == {"0", "1"}


@pytest.mark.parametrize(
    "classes", [("tumor", "normal"), ("tumor,normal",), ("tumor, normal",)]
)
def test_class_names_as_a_shell_gives_them(short, classes):
    short.data.classes = classes
    assert short.data.cohort().classes == ("tumor", "normal")


def test_numbers_may_be_classes(short, edited):
    number = lambda row: row | {"label": str(int(row["label"] == "tumor"))}
    short.data = Manifest(manifest=str(edited(number)))
    short.data.classes = (1, 0)  # as the command line reads "(1,0)"
    assert short.data.cohort().classes == ("1", "0")


def test_folds_call_each_slide_at_a_threshold_chosen_without_it(
    short, edited, tmp_path
):
    """Each fold's own, which its validation chose, and its model's own probability."""
    free = lambda row: row | {"split": "", "fold": "", "cluster": ""}
    short.data = Manifest(manifest=str(edited(free)), folds=3)
    short.train.steps = 2
    experiment.run(short, tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test.n"] == 20
    assert "test.auc_pooled" in metrics
    chosen = [metrics[f"test.fold.{k}.threshold"] for k in range(3)]
    for line in table(tmp_path / "run" / "predictions.csv"):
        k = int(line["fold"])
        card = json.loads((tmp_path / "run" / f"fold_{k}" / "model.json").read_text())
        assert card["threshold"] == chosen[k]
        # Of six digits the last one is rounded.
        above = float(line["p_tumor"]) - chosen[k]
        assert (above >= 0) == (line["prediction"] == "tumor") or abs(above) < 1e-6
    page = (tmp_path / "run" / "report.html").read_text()
    assert "AUC within folds" in page
    assert "Each decides at its own threshold" in page


def test_the_mpp_of_the_config_fills_what_manifest_and_file_leave_open(
    short, edited, tmp_path
):
    blank = lambda row: row | {"mpp": "" if row["split"] == "test" else row["mpp"]}
    short.data = Manifest(manifest=str(edited(blank)), mpp=0.3)
    rows = short.data.cohort().rows
    assert {row.mpp for row in rows if row.split == "test"} == {None}  # the files say
    assert {row.mpp for row in rows if row.split != "test"} == {0.5, 0.8}
    image = tmp_path / "silent.png"
    Image.new("RGB", (64, 64)).save(image)
    silent = lambda row: row | {"mpp": "", "path": str(image)}
    short.data = Manifest(manifest=str(edited(silent)), mpp=0.3)
    assert {row.mpp for row in short.data.cohort().rows} == {0.3}


def test_no_spreadsheet_computes_our_tables_and_we_read_what_we_wrote(tmp_path):
    lines = [
        {"slide_id": text, "reason": text, "x": -1.5, "p": "-0.25"}
        for text in ("=1+1", "+a", "-a", "@a", "\t=1", "'=1", "plain, 'a'")
    ]
    write_csv(tmp_path / "t.csv", [*lines, lines[0] | {"reason": "why\r=1"}])
    with open(tmp_path / "t.csv", newline="") as file:
        written = list(csv.DictReader(file))
    first = {line[name][0] for line in written for name in ("slide_id", "reason")}
    assert not first & set("=+-@\t\r")
    assert {line["x"] for line in written} == {"-1.5"}
    assert {line["p"] for line in written} == {"-0.25"}
    assert written[-1]["reason"] == "why =1"
    assert read_csv(tmp_path / "t.csv")[:-1] == [line | {"x": "-1.5"} for line in lines]


def test_a_report_says_that_every_slide_counts_as_a_patient_of_its_own():
    rows = tuple(Row(name, "", "a", name, "test") for name in "st")
    (note,) = write_report.limits(Experiment(precomputed="f"), Cohort(rows, ("a",)))
    assert note.startswith("Patients: every slide counts as a patient of its own")
