"""A trained run on labelled slides of others: its own threshold, its own metrics."""

import csv
import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from wsi_jax.cli import app
from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.run.cohort_predictions import Predicted
from wsi_jax.run.evaluate import write_predictions
from wsi_jax.run.predict.external_validation import (
    default_folder,
    refuse_learnt,
    training_rows,
)


@pytest.fixture
def evaluate(finished, tmp_path):
    """evaluate(manifest) -> metrics; evaluate.out is the folder of the output."""

    def command(manifest):
        words = [str(finished), "--manifest", str(manifest), "--out", str(command.out)]
        app(["evaluate", *words], standalone_mode=False)
        return json.loads((command.out / "metrics.json").read_text())

    command.out = tmp_path / "external"
    return command


def lines(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_on_the_slides_that_the_run_has_tested_the_metrics_are_its_own(
    finished, evaluate, edited, capsys
):
    """And slides that it has learnt from are refused."""
    external = evaluate(edited(lambda row: row | {"split": ""}))
    own = json.loads((finished / "metrics.json").read_text())
    assert external["test.threshold"] == own["test.threshold"]
    assert external.keys() == own.keys()
    for name, value in own.items():
        assert external[name] == pytest.approx(value, abs=2e-3, nan_ok=True), name
    assert any(name.startswith("test.site.") for name in external)
    refused = lines(evaluate.out / "refused.csv")
    assert len(refused) == 14
    assert refused[0]["reason"].endswith(": the run has learnt from this slide")
    printed = capsys.readouterr()
    assert "refused: 14 of 20, see refused.csv" in printed.out
    assert printed.err.count("refused: ") == 14
    page = (evaluate.out / "report.html").read_text()
    assert "External validation of a trained ABMIL, at its threshold" in page
    assert refused[0]["reason"] in page
    tested = lines(evaluate.out / "predictions.csv")
    assert list(tested[0]) == list(lines(finished / "predictions.csv")[0])
    assert len([*evaluate.out.glob("slides/*.png")]) == len(tested) == 6
    app(["compare", str(finished), str(evaluate.out)], standalone_mode=False)
    assert "+0.000 (+0.000 to +0.000)" in capsys.readouterr().out


@pytest.mark.long
def test_given_again_it_draws_nothing_anew(evaluate, edited):
    first = evaluate(edited(lambda row: row | {"split": ""}))
    pictures = {p: p.stat().st_mtime_ns for p in evaluate.out.glob("slides/*.png")}
    again = evaluate(edited(lambda row: row | {"split": ""}))
    assert pictures == {p: p.stat().st_mtime_ns for p in pictures}
    assert len(pictures) == 6
    assert str(first) == str(again)  # NaN is not itself


def test_a_label_that_the_run_does_not_know_is_refused(evaluate, edited):
    other = edited(lambda row: row | {"label": "cyst", "split": ""})
    with pytest.raises(SystemExit, match=r"label 'cyst' .* is not among the classes"):
        evaluate(other)


def test_two_manifests_of_one_name_do_not_share_a_folder(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "slides.csv").write_text("path,label\n")
    first, second = (str(tmp_path / name / "slides.csv") for name in "ab")
    run = tmp_path / "run"
    assert default_folder(run, first) == run / "external" / "slides"
    assert default_folder(run, first) == run / "external" / "slides"
    with pytest.raises(ValueError, match=f"is of {first}; for {second} add --out"):
        default_folder(run, second)


def test_where_no_slide_can_be_used_the_reasons_are_kept(evaluate, edited):
    gone = lambda row: row["split"] == "test" and row | {"path": "gone.tif"}
    with pytest.raises(SystemExit, match=r"none of 6 slides has a prediction; .*refus"):
        evaluate(edited(gone))
    assert len(lines(evaluate.out / "refused.csv")) == 6


def test_a_slide_of_the_same_name_and_other_pixels_may_be_judged(tmp_path, capsys):
    """Its patient's name is noted: it may be someone else's."""
    for name in "ab":
        (tmp_path / name).write_text(name)
    row = lambda path: Row("s1", str(path), "x", "p1", "train")
    learnt = [row(tmp_path / "a")]
    assert refuse_learnt([row(tmp_path / "b")], learnt) == {}
    assert "note: 1 patients have the id of one that" in capsys.readouterr().err
    shutil.copy(tmp_path / "a", tmp_path / "b")
    assert list(refuse_learnt([row(tmp_path / "b")], learnt)) == ["s1"]
    assert list(refuse_learnt([row(tmp_path / "b")], [row("gone.tif")])) == ["s1"]
    assert "note" not in capsys.readouterr().err
    renamed = dataclasses.replace(row(tmp_path / "b"), slide_id="s2")
    assert list(refuse_learnt([renamed], learnt)) == ["s2"]
    assert refuse_learnt([dataclasses.replace(renamed, path="x")], [row("gone")]) == {}


def test_a_fold_has_learnt_from_the_slides_of_the_other_folds(
    tmp_path, monkeypatch, capsys
):
    head = "slide_id,path,label,patient_id,split,fold\n"
    each = [f"s{i},s{i}.tif,{'ab'[i % 2]},p{i},,{i % 3}\n" for i in range(6)]
    (tmp_path / "manifest.csv").write_text(head + "".join(each))
    learnt = [row.slide_id for row in training_rows(tmp_path / "fold_0")]
    assert learnt == ["s1", "s2", "s4", "s5"]
    (tmp_path / "fold_0").mkdir()
    monkeypatch.chdir(tmp_path / "fold_0")
    assert [row.slide_id for row in training_rows(pathlib.Path())] == learnt
    assert training_rows(tmp_path / "elsewhere") == ()
    assert "elsewhere/manifest.csv: whether the run has" in capsys.readouterr().err


def test_several_runs_have_a_folder_of_their_own(tmp_path):
    words = ["evaluate", str(tmp_path), str(tmp_path), "--manifest", "slides.csv"]
    with pytest.raises(SystemExit, match="--out is missing"):
        app(words, standalone_mode=False)


def test_probabilities_near_one_keep_their_order(tmp_path):
    """Else the AUC of the file is another than that of the run."""
    rows = [Row(f"s{i}", "", "b", f"p{i}", "test") for i in range(2)]
    p = np.float32([[0, 1], [6e-8, 1 - 6e-8]])
    predictions = [
        Predicted(r, one, 1, np.empty(0), 0) for r, one in zip(rows, p, strict=True)
    ]
    write_predictions(tmp_path / "p.csv", predictions, Cohort(tuple(rows), ("a", "b")))
    read = [float(line["p_b"]) for line in lines(tmp_path / "p.csv")]
    np.testing.assert_array_equal(np.float32(read), p[:, 1])


def test_a_folder_without_a_run_is_one_line(tmp_path):
    words = ["evaluate", str(tmp_path), "--manifest", "slides.csv"]
    with pytest.raises(
        SystemExit, match=r"no trained model \(model\.json\); let its run"
    ):
        app(words, standalone_mode=False)
    command = "from wsi_jax.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", command, *words[:2], "--manifst=x"],
        capture_output=True,
        text=True,
    )
    line = "--manifst: no such flag; did you mean --manifest?\n"
    assert (done.returncode, done.stderr) == (1, line)
