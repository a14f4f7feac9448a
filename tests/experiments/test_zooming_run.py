"""SASHA from slides to a prediction: trained, every strategy reported, opened again."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest

import wsi_jax
from wsi_jax.methods import sasha
from wsi_jax.methods.sasha import SASHA, HAFEDStage, PolicyStage, UpdaterStage
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder
from wsi_jax.ops import zoom_env
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.slide_predictor import row_of_path
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.slide import SlideError
from wsi_jax.training.compile import make_mesh

# Each costs a program.
NAMES = "grid", "low_resolution", "full_resolution"
STRATEGIES = {name: sasha.STRATEGIES[name] for name in NAMES}
REPORTED = "ranking", *STRATEGIES


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run of the tiny cohort, of few steps, on one device."""
    config, plan = tiny(), {"steps": 2, "batch": 8, "validate_every": 2}
    config.features, config.heatmaps = "", 0
    config.encoder = ConvNeXtEncoder(blocks=(1,), width=8, stem=4, scale=1.0)
    config.grid = Grid(mpp=4.0, size_px=16, min_tissue=0.5)
    config.method = SASHA(
        children=2, standardise=True, hafed=HAFEDStage(**plan, branches=(1, 2)),
        updater=UpdaterStage(**plan, min_cosine=0.8),
        policy=PolicyStage(**plan, chunk=1),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("zooming") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sasha, "STRATEGIES", STRATEGIES)
        one = make_mesh(jax.devices()[:1])
        patch.setattr(experiment, "make_mesh", lambda: one)
        experiment.run(config, folder)
    return folder


@pytest.fixture(scope="module")
def predictor(run):
    return wsi_jax.load(run)


def table(path):
    with open(path, newline="") as file:
        return {line["slide_id"]: line for line in csv.DictReader(file)}


def test_every_strategy_is_reported_beside_the_policy(run):
    metrics = json.loads((run / "metrics.json").read_text())
    for strategy in ("policy", *REPORTED):
        for name in ("auc", "calibration_error"):
            assert 0 <= metrics[f"test.inference.{strategy}.{name}"] <= 1
    assert metrics["test.inference.policy.auc"] == metrics["test.auc"]
    lines = table(run / "predictions.csv")
    assert len(lines) == 6
    for line in lines.values():
        for prefix in ("", *(f"{name}." for name in REPORTED)):
            p = [float(line[f"{prefix}p_{name}"]) for name in ("normal", "tumor")]
            assert sum(p) == pytest.approx(1, abs=2e-6)
    of = lambda name: [line[f"{name}.p_tumor"] for line in lines.values()]
    assert of("low_resolution") != of("full_resolution")


def test_an_opened_run_zooms_to_the_same_prediction(run, predictor):
    lines, slides = table(run / "predictions.csv"), table(run / "slides.csv")
    name = next(iter(lines))
    prediction = predictor.predict(slides[name]["path"])
    n = int(slides[name]["tiles"])
    for label, p in prediction.probabilities.items():
        assert p == pytest.approx(float(lines[name][f"p_{label}"]), abs=1e-4)
    assert len(prediction.attention) == len(prediction.yx) == n
    assert len(set(prediction.order.tolist())) == zoom_env.horizon(0.2, n)
    assert n + 4 * len(prediction.order) <= prediction.cost["tiles"] < 5 * n
    assert prediction.cost["slides"] == 1


def test_a_correction_of_the_class_prior_is_in_the_prediction(run):
    predictor, slides = wsi_jax.load(run), table(run / "slides.csv")
    name = next(iter(table(run / "predictions.csv")))
    path = slides[name]["path"]
    odds = lambda: np.divide(*predictor.predict(path).probabilities.values())
    before = odds()
    shift = np.add(predictor.card.log_prior, (np.log(3.0), 0.0))
    predictor.card = dataclasses.replace(predictor.card, log_prior=tuple(shift))
    assert odds() == pytest.approx(3 * before, rel=1e-5)


def test_several_slides_together_and_one_that_is_none(run, predictor, tmp_path):
    slides = table(run / "slides.csv")
    paths = [slides[name]["path"] for name in list(table(run / "predictions.csv"))[:2]]
    torn = tmp_path / "torn.tif"
    torn.write_bytes(b"no slide")
    one, bad, other = predictor.predict_many(
        [row_of_path(p) for p in (paths[0], torn, paths[1])]
    )
    assert isinstance(bad, SlideError)
    assert "torn" in str(bad)
    for path, prediction in zip(paths, (one, other), strict=True):
        alone = predictor.predict(path)
        assert prediction.path == alone.path == path
        np.testing.assert_array_equal(prediction.order, alone.order)
        for name, p in alone.probabilities.items():
            assert prediction.probabilities[name] == pytest.approx(p, abs=1e-5)
    (only,) = predictor.predict_many([row_of_path(torn)])
    assert isinstance(only, SlideError)
