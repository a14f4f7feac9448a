"""One thing replaced by another between two starts is an error that names it."""

import json
import math
import pathlib
import shutil

import jax
import pytest
from processes import finish
from run_files import by_slide, edit, read_json, table

import wsi_jax
from wsi_jax.data.cohort import read_manifest
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.cohort_predictions import Model, Predictions
from wsi_jax.run.model_card import CARD
from wsi_jax.run.run_folder import RunError, check_claim
from wsi_jax.slides.slide import SlideError
from wsi_jax.training.checkpoint import Checkpoints


@pytest.fixture
def model(finished, tmp_path):
    """What is needed of a trained run to predict; to be changed."""
    folder = tmp_path / "model"
    shutil.copytree(finished / "train" / "best", folder / "train" / "best")
    shutil.copy(finished / CARD, folder)
    return folder


def without(path, *fields):
    plain = {k: v for k, v in read_json(path).items() if k not in fields}
    path.write_text(json.dumps(plain))


def memory_of(folder):
    """The file of what a checkpoint remembers beside its arrays."""
    (path,) = folder.glob("*/memory/metadata")
    return path


def reweight(model, change):
    """Replaces the weights by other ones."""
    params = wsi_jax.load(model).params
    best = Checkpoints(model / "train" / "best")
    memory = read_json(memory_of(model / "train" / "best"))
    best.save(memory["step"], jax.tree.map(change, params), memory)
    best.close()


def probabilities_of(finished, slide_id):
    line = by_slide(finished / "predictions.csv")[slide_id]
    return {name: float(line[f"p_{name}"]) for name in ("normal", "tumor")}


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_slide_replaced_after_learning_has_begun(
    finished, tiny, edited, manifest, tmp_path, split
):
    """The run was killed when it had learnt, and before its report."""
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "report.html").unlink()
    rows = [r for r in read_manifest(manifest).rows if r.split == split]
    slide, other = rows[0], tmp_path / "other.tif"
    other.write_bytes(pathlib.Path(slide.path).read_bytes() + b"0")

    def exchange(line):
        if line["slide_id"] == slide.slide_id:
            line["path"] = str(other)
        return line

    def use(change):
        config.data.manifest = str(edited(change))  # always the same path

    config = tiny()
    config.features, config.heatmaps = "", 0
    use(exchange)
    claimed = read_json(folder / "config.json")["config"]
    claimed["data"]["manifest"] = config.data.manifest
    edit(folder / "config.json", config=claimed)
    with pytest.raises(RunError) as caught:
        experiment.run(config, folder)
    for part in (
        f"{folder / 'train'} has begun to learn, and slide '{slide.slide_id}' has been",
        "put it back",
        f"delete {folder / 'train'}",
        "--config.run_dir",
    ):
        assert part in str(caught.value)
    if split == "val":
        return
    before = (folder / "metrics.json").read_bytes()
    use(lambda line: line)  # put back
    experiment.run(config, folder)
    assert (folder / "metrics.json").read_bytes() == before
    # Checkpoints of earlier versions do not know what they have learnt from.
    (folder / "report.html").unlink()
    without(memory_of(folder / "train" / "state"), "data")
    use(exchange)
    experiment.run(config, folder)


@pytest.mark.long
def test_weights_of_eight_devices_predict_on_one(finished, row, start, tmp_path):
    """By the command, in a process with one device."""
    assert jax.device_count() == 8
    words = ("--run", finished, "--out", tmp_path / "out", row.path)
    finish(start("experiments.predict", *words, JAX_NUM_CPU_DEVICES="1"))
    (line,) = table(tmp_path / "out" / "predictions.csv")
    for name, p in probabilities_of(finished, row.slide_id).items():
        assert float(line[f"p_{name}"]) == pytest.approx(p, abs=1e-5)


def test_weights_that_are_not_finite_are_refused(model):
    reweight(model, lambda leaf: leaf * math.nan)
    with pytest.raises(ValueError, match=r"train/best holds weights that are not fin"):
        wsi_jax.load(model)


def test_weights_of_another_run_are_refused(model):
    reweight(model, lambda leaf: leaf + 1)
    with pytest.raises(ValueError, match=r"train/best holds weights .* describes "):
        wsi_jax.load(model)


def test_swapped_classes_are_refused(model):
    edit(model / CARD, classes=["tumor", "normal"])
    with pytest.raises(ValueError, match="trained on classes normal, tumor, and model"):
        wsi_jax.load(model)


def test_runs_of_earlier_versions_still_open(model, finished, row):
    without(model / CARD, "weights", "features")
    without(memory_of(model / "train" / "best"), "classes")
    prediction = wsi_jax.load(model).predict(row.path)
    expected = probabilities_of(finished, row.slide_id)
    assert prediction.probabilities == pytest.approx(expected, abs=1e-5)


CARDS = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "threshold NaN": lambda text: _with(text, threshold=math.nan),
    "threshold 0": lambda text: _with(text, threshold=0.0),
    "threshold 2": lambda text: _with(text, threshold=2),
    "threshold gone": lambda text: _with(text, threshold=None),
    "threshold text": lambda text: _with(text, threshold="0.5"),
    "one class": lambda text: _with(text, classes=["tumor"]),
    "a class twice": lambda text: _with(text, classes=["tumor", "tumor"]),
    "classes a name": lambda text: _with(text, classes="normal"),
    "dim a text": lambda text: _with(text, dim="8"),
    "a field more": lambda text: _with(text, more=1),
    "unknown type": lambda text: text.replace("ABMIL", "ABMLI"),
    "foreign type": lambda text: text.replace("wsi_jax.run.model_card.Card", "os.Card"),
    "another type": lambda text: json.dumps(json.loads(text)["tiling"]["grid"]),
    "no tiling": lambda text: _with(text, tiling=None),
    "no method": lambda text: _with(text, method=None),
    "a field gone": lambda text: text.replace('"dim"', '"dimm"'),
    "type gone": lambda text: text.replace('"type"', '"tpye"', 1),
    "text in a grid": lambda text: text.replace('"mpp": 2.0', '"mpp": "two"'),
}


def _with(text, **fields):
    return json.dumps(json.loads(text) | fields)


@pytest.mark.parametrize("damage", CARDS)
def test_a_damaged_card_is_one_error(finished, tmp_path, damage):
    text = (finished / CARD).read_text()
    changed = CARDS[damage](text)
    assert changed != text
    (tmp_path / CARD).write_text(changed)
    with pytest.raises(ValueError, match=r"model\.json does not describe .* put it"):
        wsi_jax.load(tmp_path)


def test_a_run_of_an_earlier_version_is_refused_by_its_version(
    finished, tiny, tmp_path
):
    """Its model.json has no version, and names types that have moved."""
    made = read_json(finished / "config.json")
    assert made["versions"]["wsi_jax"] == wsi_jax.__version__
    made["config"] = {"type": "experiments.experiment.Experiment", "run_dir": ""}
    made["versions"]["wsi_jax"] = "0.1.0"
    card = read_json(finished / CARD) | {"type": "wsi_jax.run.Card"}
    del card["version"]
    (tmp_path / "config.json").write_text(json.dumps(made))
    (tmp_path / CARD).write_text(json.dumps(card))
    for read in (wsi_jax.load, lambda folder: check_claim(folder, tiny())):
        with pytest.raises(RunError, match=r" is of wsi_jax 0\.1\.0, .*==0\.1\.0"):
            read(tmp_path)


def test_a_slide_without_finite_numbers_is_refused_in_evaluation(
    finished, tiny, row, tmp_path, monkeypatch
):
    """And the others go on."""
    folder = shutil.copytree(finished, tmp_path / "run")
    for name in ("report.html", "predictions.csv"):
        (folder / name).unlink()
    predict = Model.predict

    def overflowing(self, part):
        for i, one in enumerate(predict(self, part)):
            bad = part.rows[0].split == "test" and i == 0
            yield (one[0] * math.nan, *one[1:]) if bad else one

    monkeypatch.setattr(Model, "predict", overflowing)
    config = tiny()
    config.features, config.heatmaps = "", 0
    experiment.run(config, folder)
    predicted = [one["slide_id"] for one in table(folder / "predictions.csv")]
    assert row.slide_id not in predicted
    assert len(predicted) == 5
    (line,) = [s for s in table(folder / "slides.csv") if s["status"] == "refused"]
    assert line["slide_id"] == row.slide_id
    assert "not finite" in line["reason"]
    assert read_json(folder / "metrics.json")["test.n"] == 5


def test_a_fold_without_any_prediction_stops():
    nothing = Predictions(slides=[], threshold=None)
    with pytest.raises(RunError, match="no test slide has a prediction"):
        experiment.refuse_unpredicted([], [nothing])


def test_numbers_that_are_not_finite_are_no_prediction(finished, row):
    predictor = wsi_jax.load(finished)
    overflowing = jax.tree.map(lambda leaf: leaf * 1e30, predictor.params)
    predictor.runner.params = overflowing
    refused = rf"{row.slide_id}: the method's numbers for it are not finite"
    with pytest.raises(SlideError, match=refused):
        predictor.predict(row.path)
    (error,) = predictor.predict_many([row])
    assert isinstance(error, SlideError)
