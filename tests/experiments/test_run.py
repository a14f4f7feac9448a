"""A run's folder, and a run opened again."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from run_files import by_slide, read_json, table, times

import wsi_jax
from wsi_jax.data.cohort import read_manifest
from wsi_jax.evals.cost_meter import WORK
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.checks import note_stains, training_stain_range
from wsi_jax.run.run_folder import RunError
from wsi_jax.run.slide_record import tiled_record
from wsi_jax.run.tiling import TiledSlide
from wsi_jax.slides.slide import SlideError, open_slide
from wsi_jax.slides.stain import Stain
from wsi_jax.training.flops import count_flops
from wsi_jax.training.log import read_metrics


def test_a_run_leaves_all_there_is_to_know(finished, tiny):
    metrics = read_json(finished / "metrics.json")
    assert 0 <= metrics["test.auc"] <= 1
    assert metrics["test.n"] == 6
    assert metrics["test.interval_note"].startswith("patients: ")  # too few of a class
    cost = read_json(finished / "cost.json")
    slides = table(finished / "slides.csv")
    assert cost["slides"] == len(slides) == 20
    assert cost["tiles"] == sum(int(s["tiles"]) for s in slides)
    encoder = tiny().encoder
    tile = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    each = count_flops(encoder.make().apply, encoder.params(), tile)
    # Besides the encoder's there is the arithmetic of training, validation and test.
    assert cost["flops"] > cost["tiles"] * each > 0
    assert cost["steps"] == 30
    assert not any(cost[f"repeated_{name}"] for name in WORK)
    assert {s["status"] for s in slides} == {"encoded"}
    record = read_json(finished / "config.json")
    assert {"config", "commit", "versions"} <= record.keys()
    assert (finished / "model.json").is_file()
    assert "AUC" in (finished / "metrics.txt").read_text()
    assert "<svg" in (finished / "report.html").read_text()
    pictures = [finished / "roc.png", *(finished / "heatmaps").glob("*.png")]
    assert len(pictures) == 3  # of one slide: where it was looked at, and at what
    for path in pictures:
        with Image.open(path) as image:
            image.verify()
    assert not [p for p in finished.iterdir() if p.name.startswith(".")]


def test_every_test_slide_has_one_line_and_probabilities(finished, manifest):
    lines = table(finished / "predictions.csv")
    rows = {r.slide_id: r for r in read_manifest(manifest).rows if r.split == "test"}
    assert [line["slide_id"] for line in lines] == list(rows)
    for line in lines:
        row = rows[line["slide_id"]]
        expected = row.label, row.patient_id, row.site
        assert (line["label"], line["patient_id"], line["site"]) == expected
        p = [float(line["p_normal"]), float(line["p_tumor"])]
        assert sum(p) == pytest.approx(1, abs=2e-6)


def test_metrics_are_those_of_the_predictions(finished):
    lines = table(finished / "predictions.csv")
    metrics = read_json(finished / "metrics.json")
    positive = np.array([line["label"] == "tumor" for line in lines])
    scores = np.array([float(line["p_tumor"]) for line in lines])
    pairs = scores[positive][:, None] - scores[~positive]
    auc = (np.sign(pairs) + 1).mean() / 2
    assert metrics["test.auc"] == pytest.approx(auc)
    called = np.array([line["prediction"] == "tumor" for line in lines])
    np.testing.assert_array_equal(called, scores >= metrics["test.threshold"])
    assert metrics["test.accuracy"] == pytest.approx((called == positive).mean())


def test_every_step_is_logged_once(finished):
    lines = read_metrics(finished / "train" / "metrics.jsonl")
    steps = lambda name: [line["step"] for line in lines if name in line]
    assert steps("train.loss") == [5, 10, 15, 20, 25, 30]
    assert steps("val.log_loss") == [10, 20, 30]


def test_the_same_command_does_nothing_more(finished, tiny):
    config = tiny()
    config.features = ""
    config.run_dir, config.heatmaps, config.max_refused = "elsewhere", 3, 0.5
    before = times(finished.rglob("*"))
    assert experiment.run(config, finished) == finished / "report.html"
    assert times(finished.rglob("*")) == before


def test_another_config_is_refused_field_by_field(finished, tiny):
    config = tiny()
    config.train.steps, config.grid.mpp = 31, 4.0
    config.features = ""
    before = times(finished.rglob("*"))
    with pytest.raises(RunError) as caught:
        experiment.run(config, finished)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [
        "  grid.mpp: was 2.0, is 4.0",
        "  train.steps: was 30, is 31",
    ]
    assert "--config.run_dir" in lines[-1]
    assert times(finished.rglob("*")) == before


def test_an_opened_run_predicts_the_same(finished, row, tmp_path):
    """A test slide, from its file alone."""
    line = by_slide(finished / "predictions.csv")[row.slide_id]
    predictor = wsi_jax.load(finished)
    prediction = predictor.predict(row.path)
    assert prediction.slide_id == row.slide_id
    assert prediction.label == line["prediction"]
    for name, p in prediction.probabilities.items():
        assert p == pytest.approx(float(line[f"p_{name}"]), abs=1e-5)
    assert prediction.attention.sum() == pytest.approx(1, abs=1e-5)
    assert len(prediction.attention) == len(prediction.yx) == prediction.cost["tiles"]
    prediction.heatmap(tmp_path / "heatmap.png")
    with Image.open(tmp_path / "heatmap.png") as image:
        image.verify()
    with open_slide(row.path) as slide:
        assert (prediction.yx >= 0).all()
        assert (prediction.yx + prediction.tile_px <= np.array(slide.shape) + 1).all()

    glass = tmp_path / "glass.tif"
    Image.new("RGB", (400, 400), "white").save(glass)
    with pytest.raises(SlideError, match=r"no tissue.* grid\.min_tissue \(settled"):
        predictor.predict(glass, mpp=1.0)


def flat_slide(path, tissue, background):
    """A square of tissue in one colour, the rest background."""
    pixels = np.full((400, 400, 3), background, np.uint8)
    pixels[100:300, 100:300] = tissue
    Image.fromarray(pixels).save(path)
    return path


def test_a_slide_of_another_stain_has_a_note_or_is_refused(finished, tmp_path):
    """Fluorescence and DAB; a slide in the colours of training has no note."""
    own, strict = (
        wsi_jax.load(finished, refuse_unfamiliar_stains=refuse)
        for refuse in (False, True)
    )
    familiar = flat_slide(tmp_path / "he.png", (190, 120, 170), 245)
    assert strict.predict(familiar, mpp=1.0).note == ""
    for name, colours, words in (
        ("dapi", ((20, 30, 200), 4), "as in fluorescence"),
        ("dab", ((120, 80, 50), 245), "absorbs other colours"),
    ):
        path = flat_slide(tmp_path / f"{name}.png", *colours)
        assert words in own.predict(path, mpp=1.0).note
        with pytest.raises(SlideError, match=rf"^{name}: stained like no .*{words}"):
            strict.predict(path, mpp=1.0)


def test_test_slides_stained_like_no_training_slide_are_noted(manifest):
    cohort = read_manifest(manifest)
    stains = {row.slide_id: Stain(False, (0.3, 0.5, 0.2)) for row in cohort.rows}
    strange = next(row.slide_id for row in cohort.rows if row.split == "test")
    stains[strange] = Stain(False, (0.2, 0.36, 0.44))
    records = [
        tiled_record(TiledSlide(row, np.zeros((1, 2)), stain=stains[row.slide_id]), "")
        for row in cohort.rows
    ]
    note_stains(records, [cohort], [training_stain_range(records, cohort)])
    noted = {r.slide_id: r.reason for r in records if r.reason}
    assert list(noted) == [strange]
    assert "stained like no training slide" in noted[strange]


def test_a_folder_without_a_model_cannot_be_opened(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="let its run end first"):
        wsi_jax.load(tmp_path)
    shutil.copytree(finished, tmp_path / "folds" / "fold_0")
    with pytest.raises(FileNotFoundError, match="one of its folds: fold_0"):
        wsi_jax.load(tmp_path / "folds")


def test_weights_that_have_changed_since_are_refused(finished, tmp_path):
    """Seeds and files are known by what they hold, not by their names."""
    folder = tmp_path / "run"
    folder.mkdir()
    card = read_json(finished / "model.json")
    card["tiling"]["encoder"]["seed"] = 1
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"random:0.*now has random:1"):
        wsi_jax.load(folder)

    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"other weights")
    card["tiling"]["encoder"]["weights"] = str(weights)
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"weights\.safetensors' now has sha256:"):
        wsi_jax.load(folder)
