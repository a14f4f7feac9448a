"""Cohorts in all their states: bad slides, folds, classes in any order."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image
from run_files import read_json, table, write_table

from wsi_jax.config_fields import from_plain
from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.run.predict.predictor import load
from wsi_jax.run.run_folder import RunError, read_csv, write_csv
from wsi_jax.run.write_report import write_report

BAD_SLIDES = {
    "broken.svs": ("0.5", r"broken\.svs cannot be opened as a slide; copy it again"),
    "glass.png": ("1.0", r"no tissue .*lower --config\.grid\.min_tissue"),
    "unknown.png": ("", r"unknown.*no usable um/px.*CSV's mpp column"),
    "coarse.png": ("9.0", r"coarse.*Set --config\.grid\.mpp to 9 or coarser"),
    "gone.svs": ("0.5", r"no file .*gone\.svs; mend its path"),
}


@pytest.fixture(scope="module")
def bad(tiny, manifest, tmp_path_factory):
    """A run and its config: bad slides, one in the place of a good one; few steps."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "broken.svs").write_bytes(b"II*\0 and then nothing of sense")
    colours = {"glass": "white", "unknown": (200, 80, 160), "coarse": (210, 80, 160)}
    for name, colour in colours.items():
        Image.new("RGB", (400, 400), colour).save(folder / f"{name}.png")
    first, *rows = table(manifest)
    for i, (name, (mpp, _)) in enumerate(BAD_SLIDES.items()):
        own = {"slide_id": f"bad_{i}", "path": str(folder / name), "mpp": mpp}
        rows.append(first | own | {"cluster": "", "patient_id": f"b{i}"})
    for row in rows:
        row["path"] = str(manifest.parent / row["path"])
        row["mask_path"] = row["annotation_path"] = ""
    write_table(folder / "slides.csv", rows)
    config = tiny()
    config.data = Manifest(
        manifest=str(folder / "slides.csv"), classes=("tumor", "normal")
    )
    config.heatmaps, config.max_refused, config.train.steps = 0, 0.25, 4
    experiment.run(config, folder / "run")
    return folder / "run", config


def test_bad_slides_are_recorded_and_the_others_go_on(bad):
    run, _ = bad
    lines, page = table(run / "slides.csv"), (run / "report.html").read_text()
    refused = {one["slide_id"]: one for one in lines if one["status"] == "refused"}
    assert list(refused) == [f"bad_{i}" for i in range(len(BAD_SLIDES))]
    for line, (_, message) in zip(refused.values(), BAD_SLIDES.values(), strict=True):
        assert line["reason"].startswith(f"{line['slide_id']}: ")
        assert re.search(message, line["reason"])
        assert line["slide_id"] in page
    assert f"{len(BAD_SLIDES)} slides are in no number above" in page
    assert [one["status"] for one in lines].count("encoded") == 19
    assert len(table(run / "predictions.csv")) == 6
    with Image.open(run / "tissue.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert (pixels == (0xB8, 0x3A, 0)).all(-1).any()  # a frame around refused slides
    assert (pixels == (0, 158, 115)).all(-1).any()  # an outline around tissue


def test_classes_come_in_the_order_asked_for(bad):
    """The second is the positive one."""
    folder, _ = bad
    lines = table(folder / "predictions.csv")
    assert list(lines[0])[-2:] == ["p_tumor", "p_normal"]
    metrics = read_json(folder / "metrics.json")
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
    older = read_json(folder / "model.json")
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
        RunError, match=r"5 of 24 .*--config\.max_refused=0\.05"
    ) as caught:
        experiment.run(config, tmp_path / "run")
    lines = table(tmp_path / "run" / "slides.csv")
    refused = [s["reason"] for s in lines if s["status"] == "refused"]
    assert [f"  - {r}" for r in refused] == str(caught.value).splitlines()[1:]
    assert len(refused) == 5
    assert not list((tmp_path / "run").rglob("*.h5"))


@pytest.fixture
def folds(short, edited, tmp_path):
    """folds(change) trains and tests three folds of the rows so changed, each on slides
    of its own: (report, lines, metrics, cards)."""

    def run(change):
        free = {"split": "", "fold": "", "cluster": ""}
        path, folder = edited(lambda row: row | free | change(row)), tmp_path / "run"
        short.data, short.train.steps = Manifest(manifest=str(path), folds=3), 2
        experiment.run(short, folder)
        lines = table(folder / "predictions.csv")
        names = [{line["slide_id"] for line in part} for part in (lines, table(path))]
        assert names[0] == names[1]
        metrics = read_json(folder / "metrics.json")
        assert metrics["test.n"] == len(lines) == 20
        cards = [read_json(path) for path in sorted(folder.glob("fold_*/model.json"))]
        assert len(cards) == 3
        return (folder / "report.html").read_text(), lines, metrics, cards

    return run


def test_folds_of_three_classes_test_every_slide_once(folds):
    """Invented labels."""
    names = ("blue", "green", "red")
    relabel = lambda row: {"label": names[int(row["patient_id"][-3:]) % 3]}
    _, lines, metrics, _ = folds(relabel)
    for line in lines:
        p = [float(line[f"p_{name}"]) for name in names]
        assert sum(p) == pytest.approx(1, abs=2e-6)
        assert line["prediction"] == names[int(np.argmax(p))]
    assert "test.threshold" not in metrics


def test_folds_call_each_slide_at_a_threshold_chosen_without_it(folds):
    """Each fold's own, which its validation chose, and its model's own probability."""
    page, lines, metrics, cards = folds(lambda row: {})
    assert "test.auc_pooled" in metrics
    chosen = [metrics[f"test.fold.{k}.threshold"] for k in range(3)]
    assert [card["threshold"] for card in cards] == chosen
    for line in lines:
        # Of six digits the last one is rounded.
        above = float(line["p_tumor"]) - chosen[int(line["fold"])]
        assert (above >= 0) == (line["prediction"] == "tumor") or abs(above) < 1e-6
    assert "AUC within folds" in page
    assert "Each decides at its own threshold" in page


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
    written = table(tmp_path / "t.csv")
    first = {line[name][0] for line in written for name in ("slide_id", "reason")}
    assert not first & set("=+-@\t\r")
    assert {line["x"] for line in written} == {"-1.5"}
    assert {line["p"] for line in written} == {"-0.25"}
    assert written[-1]["reason"] == "why =1"
    assert read_csv(tmp_path / "t.csv")[:-1] == [line | {"x": "-1.5"} for line in lines]


def test_a_report_says_that_every_slide_counts_as_a_patient_of_its_own():
    rows = tuple(Row(name, "", "a", name, "test") for name in "st")
    (note,) = write_report.limitations(
        Experiment(precomputed="f"), Cohort(rows, ("a",))
    )
    assert note.startswith("Patients: every slide counts as a patient of its own")
