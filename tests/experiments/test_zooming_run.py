"""SASHA from slides to a prediction: trained, reported with every strategy, opened.

And by the command, which draws the path of each slide.
"""

import dataclasses
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from run_files import by_slide, read_json, table

import wsi_jax
from wsi_jax import cli
from wsi_jax.methods import sasha
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.methods.mil import ABMIL
from wsi_jax.methods.patch_all import PatchAll
from wsi_jax.methods.sasha import SASHA, HAFEDStage, PolicyStage, UpdaterStage
from wsi_jax.ops import zoom_env
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.interrupts import Stopped
from wsi_jax.run.predict import predict_slides
from wsi_jax.run.predict.predictor import Predictor
from wsi_jax.run.predict.slide_predictor import row_of_path
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.slide import SlideError
from wsi_jax.training.mesh import make_mesh

# Each costs a program.
NAMES = "grid", "low_resolution", "full_resolution"
STRATEGIES = {name: sasha.STRATEGIES[name] for name in NAMES}
REPORTED = "ranking", *STRATEGIES
SHARE, CHILDREN = 0.25, 2


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run that zooms into a quarter of the tiles; not to be changed.

    Of few steps, on one device.
    """
    config, plan = tiny(), {"steps": 2, "batch": 8, "validate_every": 2}
    config.features, config.heatmaps = "", 1
    config.grid = Grid(mpp=4.0, size_px=16, min_tissue=0.5)
    config.method = SASHA(
        children=CHILDREN, zoom_share=SHARE, standardise=True,
        hafed=HAFEDStage(**plan, branches=(1, 2)),
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


@pytest.fixture(scope="module")
def slides(run):
    """Paths of the test slides, by name."""
    paths = {line["slide_id"]: line["path"] for line in table(run / "slides.csv")}
    return {name: paths[name] for name in predictions(run)}


def predictions(folder):
    """Lines of predictions.csv, by slide."""
    return by_slide(folder / "predictions.csv")


@pytest.fixture
def command(run, tmp_path):
    """command(*words) predicts slides; gives the lines of predictions.csv by name."""
    out, zooming = tmp_path / "out", run

    def predict(*words, run=zooming):
        argv = ["predict", "--run", str(run), "--out", str(out), *map(str, words)]
        cli.app(argv, standalone_mode=False)
        return predictions(out)

    predict.out = out
    return predict


@pytest.fixture
def asked(monkeypatch):
    """Paths of the slides that were predicted, a list for those predicted at once."""
    groups, predict = [], Predictor._predict

    def watched(self, rows, *args):
        groups.append([row.path for row in rows])
        return predict(self, rows, *args)

    monkeypatch.setattr(Predictor, "_predict", watched)
    return groups


def test_every_strategy_is_reported_beside_the_policy(run):
    metrics = read_json(run / "metrics.json")
    for strategy in ("policy", *REPORTED):
        for name in ("auc", "calibration_error"):
            assert 0 <= metrics[f"test.inference.{strategy}.{name}"] <= 1
    assert metrics["test.inference.policy.auc"] == metrics["test.auc"]
    lines = predictions(run)
    assert len(lines) == 6
    for line in lines.values():
        for prefix in ("", *(f"{name}." for name in REPORTED)):
            p = [float(line[f"{prefix}p_{name}"]) for name in ("normal", "tumor")]
            assert sum(p) == pytest.approx(1, abs=2e-6)
    of = lambda name: [line[f"{name}.p_tumor"] for line in lines.values()]
    assert of("low_resolution") != of("full_resolution")


def test_a_correction_of_the_class_prior_is_in_the_prediction(
    slides, predictor, monkeypatch
):
    path = next(iter(slides.values()))
    odds = lambda: np.divide(*predictor.predict(path).probabilities.values())
    before = odds()
    shift = np.add(predictor.card.log_prior, (np.log(3.0), 0.0))
    card = dataclasses.replace(predictor.card, log_prior=tuple(shift))
    monkeypatch.setattr(predictor, "card", card)
    assert odds() == pytest.approx(3 * before, rel=1e-5)


def test_the_report_has_paths_the_course_and_the_calibration_error(run):
    drawn = sorted((run / "heatmaps").iterdir())
    assert [path.stem.endswith("_top") for path in drawn] == [False, True]
    for path in drawn:
        with Image.open(path) as image:
            assert np.asarray(image).std() > 10
    page = (run / "report.html").read_text()
    metrics = read_json(run / "metrics.json")
    error = metrics["test.calibration_error"]
    assert f"Expected calibration error {error:.3f}" in page
    assert '<th scope="col">calibration error</th>' in page
    assert "<strong>While zooming</strong>" in page
    assert f"after the last: tumor {metrics['test.auc']:.3f}" in page


def test_the_command_draws_and_lists_the_path_of_each_slide(
    run, slides, predictor, command, asked, tmp_path, capsys
):
    bad = tmp_path / "bad.tif"
    bad.write_text("no slide")
    first, *rest = slides.values()
    lines = command("--together", 3, first, bad, *rest)
    assert [len(group) for group in asked] == [3, 3, 1]
    assert list(lines) == ["test_001", "bad", *list(slides)[1:]]
    assert lines["bad"]["prediction"] == ""
    assert "cannot be opened as a slide" in lines["bad"]["reason"]
    assert "refused: bad" in capsys.readouterr().err
    assert not list(command.out.glob("bad*"))
    (only,) = predictor.predict_many([row_of_path(bad)])
    assert isinstance(only, SlideError)
    expected = predictions(run)
    for name, path in slides.items():
        prediction = predictor.predict(path)  # alone
        line, steps = lines[name], table(command.out / f"{name}_zooms.csv")
        assert line["prediction"] == expected[name]["prediction"]
        p = float(expected[name]["p_tumor"])
        assert float(line["p_tumor"]) == pytest.approx(p, abs=1e-5)
        n = len(prediction.yx)
        assert len(prediction.attention) == n
        assert len(steps) == zoom_env.horizon(SHARE, n)
        assert n + 4 * len(steps) <= prediction.cost["tiles"] < 5 * n
        assert prediction.cost["slides"] == 1
        assert int(line["tiles"]) == n + CHILDREN**2 * len(steps)
        assert [int(one["step"]) for one in steps] == list(range(1, len(steps) + 1))
        corners = [(int(one["y"]), int(one["x"])) for one in steps]
        assert corners == [tuple(yx) for yx in prediction.yx[prediction.order].tolist()]
        assert len(set(corners)) == len(corners)
        for one in steps:
            assert float(one["size_px"]) == pytest.approx(64 / prediction.mpp, abs=0.01)
        with Image.open(command.out / f"{name}.png") as image:
            assert np.asarray(image).std() > 10


def test_what_was_predicted_before_a_stop_is_not_predicted_again(
    slides, command, asked, monkeypatch
):
    paths, draw = list(slides.values()), predict_slides.draw

    def stop(predictor, row, *args):
        if row.path == paths[3]:
            raise Stopped(signal.SIGTERM)
        return draw(predictor, row, *args)

    with monkeypatch.context() as patch:
        patch.setattr(predict_slides, "draw", stop)
        with pytest.raises(SystemExit):
            command("--together", 2, *paths)
    assert len(table(command.out / "predictions.csv")) == 3
    asked.clear()
    lines = command("--together", 2, *paths)
    assert asked == [paths[3:5], paths[5:]]
    assert list(lines) == list(slides)
    asked.clear()
    assert command(*reversed(paths)) == lines
    assert asked == []


def test_no_slides_together_is_a_mistake(slides, command):
    with pytest.raises(SystemExit, match="--together 0: 1 or more"):
        command("--together", 0, *slides.values())


def test_a_run_that_zooms_has_no_saliency(slides, command, asked):
    with pytest.raises(SystemExit, match="SASHA reads features of tiles at two res"):
        command("--saliency", *slides.values())
    assert not asked
    assert not command.out.exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ABMIL, "ABMIL pools features of tiles; the gradient at a slide's pixels "),
        (AttentionSampling, "AttentionSampling reads crops of a slide;"),
        (PatchAll, "PatchAll reads crops of a slide;"),
        (SASHA, "SASHA reads features of tiles at two resolutions;"),
    ],
)
def test_why_there_is_no_saliency_is_true_of_the_method(method, message):
    predictor = Predictor.__new__(Predictor)
    predictor.card, predictor._saliency = SimpleNamespace(method=method()), None
    with pytest.raises(ValueError, match=rf"^{message}.*of StreamingCLAM only$"):
        predictor.check_saliency()


def test_a_run_on_tiles_predicts_no_slides(slides, command, tmp_path):
    run = tmp_path / "tiles"
    run.mkdir()
    (run / "encoder.safetensors").touch()
    for words in ([], ["--saliency"]):
        with pytest.raises(SystemExit, match="trained on tiles and judges no slides"):
            command(*words, *slides.values(), run=run)


def test_runs_that_zoom_predict_together(run, predictor, slides):
    """A run and itself are that run; but the order of zooms is of one run alone."""
    together = wsi_jax.load([predictor, run])
    paths = list(slides.values())[:2]
    for path, mean in zip(paths, wsi_jax.predict(together, paths), strict=True):
        alone = predictor.predict(path)
        assert mean.label == alone.label
        assert mean.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
        np.testing.assert_allclose(mean.attention, alone.attention, atol=1e-5)
        assert mean.order is None
        assert len(mean.members) == 2
