"""`import wsi_jax` in a notebook: runs, predictions, several runs together."""

import csv
import dataclasses
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import wsi_jax
from wsi_jax import cli
from wsi_jax.data.cohort import read_manifest
from wsi_jax.evals.metrics import predict as decide
from wsi_jax.run.predict.ensemble import Ensemble
from wsi_jax.slides.slide import SlideError
from wsi_jax.slides.stain import StainRange


@pytest.fixture(scope="module")
def rows(manifest):
    """The test slides."""
    return [row for row in read_manifest(manifest).rows if row.split == "test"]


@pytest.fixture(scope="module")
def run(finished):
    return wsi_jax.Run(finished)


def edited(run, folder, **fields):
    """A copy of a run whose card has other fields."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("features", "state"))
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | fields))
    return folder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 3}, r"^steps: no such field; did you mean train\.steps\?"),
        ({"train": {"steps": "many"}}, r"^train\.steps='many': not a whole number"),
        ({"train.steps": 0}, r"^train\.steps=0: 1 or more"),
        (
            {"tissue": {"source": "LUCK"}},
            r"^tissue\.source='LUCK': not one of AUTO",
        ),
        ({"train.balanced": True}, r"add train\.class_weights=False, or leave"),
        ({"train.batch": 8}, r"add manifest=my_slides\.csv"),
    ],
)
def test_errors_speak_python(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        wsi_jax.train("quick", run_dir=tmp_path / "run", **fields)
    assert not (tmp_path / "run").exists()


def test_methods_and_configs_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no 'quik' .*; did you mean quick\?"):
        wsi_jax.train("quik", manifest="slides.csv")
    with pytest.raises(ValueError, match="add run_dir=FOLDER"):
        wsi_jax.train(wsi_jax.Experiment(), manifest="slides.csv")
    with pytest.raises(FileNotFoundError, match="let its run end first"):
        wsi_jax.Run(tmp_path)


def test_extraction_is_a_call(tiny, rows, tmp_path):
    (tmp_path / "gone.csv").write_text(f"path\n{rows[0].path}\ngone.tif\n")
    config = tiny()
    config.features = ""
    made = wsi_jax.extract(config, manifest=tmp_path / "gone.csv", run_dir=tmp_path)
    (folder,) = made.features
    assert [path.stem for path in folder.glob("*.h5")] == [rows[0].slide_id]
    assert [slide["status"] for slide in made.slides] == ["encoded", "refused"]
    assert repr(made).startswith("Extraction(1 of 2 slides have features: ")


def test_a_run_predicts_one_slide_or_several(run, rows, tmp_path):
    one = run.predict(rows[0].path)
    by_name = {line["slide_id"]: line for line in run.predictions}
    assert one.label == by_name[rows[0].slide_id]["prediction"]
    shutil.copy(rows[1].path, tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(b"II*\0 no slide")
    several = wsi_jax.predict(run, [rows[0].path, tmp_path])
    assert [p.slide_id for p in several] == [rows[0].slide_id, "a"]
    assert several[0].probabilities == one.probabilities
    assert list(several.refused) == ["b"]
    folder = wsi_jax.predict(run.folder, tmp_path)
    assert (len(folder), list(folder.refused)) == (1, ["b"])
    with pytest.raises(SlideError, match=r"^b: "):
        wsi_jax.predict(run, tmp_path / "b.tif")


def test_a_notebook_shows_what_it_is_given(run, rows, finished, tmp_path):
    line = run.metrics["test.auc"]
    assert f"AUC {line:.3f}" in repr(run)
    assert f"<td>AUC</td><td>{line:.3f}" in run._repr_html_()
    assert "ABMIL, normal, tumor; tiles of 32 px at 2 um/px" in repr(run.predictor)
    prediction = run.predict(rows[0].path)
    assert repr(prediction).startswith(f"SlidePrediction({rows[0].slide_id}: ")
    png = prediction._repr_png_()
    assert len(png) < 200_000
    with Image.open(io.BytesIO(png)) as picture:
        assert max(picture.size) == 900
    assert prediction._replace(path=str(tmp_path / "gone.tif"))._repr_png_() is None
    table = wsi_jax.predict(run, [rows[0].path, "<gone>.tif"])._repr_html_()
    assert f"<td>{rows[0].slide_id}</td><td>{prediction.label}</td>" in table
    assert "<gone>" not in table
    shown = repr(wsi_jax.Experiment(method=wsi_jax.Max(width=64)))
    assert "method (type) = 'Max'\n  method.width = 64" in shown
    assert "train.steps" not in shown, "it is as by default"


def test_a_run_that_is_open_refuses_unfamiliar_stains_where_asked(finished, rows):
    run = wsi_jax.load(finished)
    run.card = dataclasses.replace(run.card, stain=StainRange(dark=True))
    path = rows[0].path
    assert "stained like no slide" in run.predict(path).note
    for opened in (run, [run]):
        strict = wsi_jax.load(opened, refuse_unfamiliar_stains=True)
        assert strict.digest != run.digest
        with pytest.raises(ValueError, match="stained like no slide that the run"):
            strict.predict(path)
    assert wsi_jax.load(run) is run
    assert "stained like no slide" in run.predict(path).note


@pytest.fixture(scope="module")
def members(finished, tmp_path_factory):
    """Three runs of other priors and thresholds."""
    folder, runs = tmp_path_factory.mktemp("members"), [finished]
    for i, (shift, threshold) in enumerate([(-1.5, 0.2), (1.0, 0.9)]):
        fields = {"log_prior": [0.0, shift], "threshold": threshold}
        runs.append(edited(finished, folder / str(i), **fields))
    return runs


def test_runs_together_are_their_mean(members, rows):
    """Each with its own prior; decided at the mean threshold, as folds are."""
    alone = [wsi_jax.load(run) for run in members]
    together = wsi_jax.load([members[0], *alone[1:]])
    t = np.mean([one.card.threshold for one in alone])
    for row in rows:
        each = [one.predict(row.path) for one in alone]
        mean = together.predict(row.path)
        p = np.mean([list(one.probabilities.values()) for one in each], 0)
        np.testing.assert_allclose(list(mean.probabilities.values()), p, atol=1e-6)
        assert mean.label == together.classes[decide(p[None], t)[0]]
        tumor = [one.probabilities["tumor"] for one in each]
        assert mean.spread["tumor"] == pytest.approx((min(tumor), max(tumor)))
        assert len(mean.members) == 3
        np.testing.assert_allclose(mean.attention, each[0].attention, atol=1e-6)
        assert mean.cost["tiles"] == each[0].cost["tiles"], "a slide is encoded once"
    value, ends = mean.probabilities[mean.label], mean.spread[mean.label]
    spread = " to ".join(f"{end:.3f}" for end in ends)
    shown = f"{mean.slide_id}: {mean.label} ({value:.3f}; {spread} by 3 runs)"
    assert mean.title() == shown
    assert repr(together).startswith("Ensemble of 3:\n  Predictor(")
    assert len({together.digest, *(one.digest for one in alone)}) == 4


def test_runs_that_differ_have_no_mean(members, finished, tmp_path):
    tiling = json.loads((finished / "model.json").read_text())["tiling"]
    tiling["grid"]["size_px"] = 64
    larger = edited(finished, tmp_path / "larger", tiling=tiling)
    with pytest.raises(ValueError, match="see other tiles of a slide"):
        wsi_jax.load([finished, larger])
    one, other = wsi_jax.load(finished), wsi_jax.load(finished)
    other.card = dataclasses.replace(other.card, classes=("benign", "tumor"))
    with pytest.raises(ValueError, match=r"normal, tumor and .* benign, tumor: runs"):
        Ensemble([one, other])
    with pytest.raises(ValueError, match="name one at least"):
        wsi_jax.load([])
    with pytest.raises(ValueError, match="drawn of one run; 3 are given"):
        wsi_jax.load(members).check_saliency()


@pytest.fixture
def trained(tiny, tmp_path):
    """A run of two folds and its call, which may be made again."""
    config, short = tiny(), {"steps": 4, "validate_every": 2}
    before = repr(config)
    call = lambda: wsi_jax.train(
        config, run_dir=tmp_path / "run", train=short, heatmaps=0,
        **{"train.save_every": 2, "data.folds": 2},
    )  # fmt: skip
    run = call()
    assert repr(config) == before, "the config given is the caller's"
    return run, call


def test_training_is_a_call_and_its_folds_predict_together(trained, manifest, tmp_path):
    """What its report says of slides that every fold has tested; and their spread."""
    run, call = trained
    assert run.report.is_file()
    assert run.metrics["test.n"] == len(run.predictions) == 6
    written = json.loads((run.folder / "config.json").read_text())["config"]["train"]
    assert (written["steps"], written["save_every"]) == (4, 2)
    assert call().metrics == run.metrics, "a finished run is given back"
    assert [path.name for path in run.models] == ["fold_0", "fold_1"]
    rows = {row.slide_id: row for row in read_manifest(manifest).rows}
    lines = run.predictions[:2]
    out, words = tmp_path / "out", [f"--run={folder}" for folder in run.models]
    paths = [rows[line["slide_id"]].path for line in lines]
    cli.app(["predict", *words, f"--out={out}", *paths], standalone_mode=False)
    with open(out / "predictions.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for line, now in zip(lines, table, strict=True):
        assert now["prediction"] == line["prediction"]
        assert float(now["p_tumor"]) == pytest.approx(float(line["p_tumor"]), abs=1e-5)
        low, high = float(now["p_tumor_low"]), float(now["p_tumor_high"])
        assert low < float(now["p_tumor"]) < high
        assert now["run"] == ", ".join(map(str, run.models))
