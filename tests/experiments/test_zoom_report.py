"""A run that zooms shows its path: in its report, and of any slide by the command."""

import csv
import json
import signal
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import wsi_jax
from wsi_jax import cli
from wsi_jax.data.cohort import in_split, read_manifest
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.methods.mil import ABMIL
from wsi_jax.methods.patch_all import PatchAll
from wsi_jax.methods.sasha import SASHA, HAFEDStage, PolicyStage, UpdaterStage
from wsi_jax.run import predict_slides
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.interrupts import Stopped
from wsi_jax.run.predictor import Predictor
from wsi_jax.slides.grid import Grid

SHARE, CHILDREN = 0.25, 2


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def zooming(tiny, tmp_path_factory):
    """A finished run that zooms into a quarter of the tiles; not to be changed."""
    config, course = tiny(), {"steps": 6, "batch": 8, "validate_every": 3}
    config.features, config.heatmaps = "", 2
    config.grid = Grid(mpp=4.0, size_px=16, min_tissue=0.5)
    config.method = SASHA(
        children=CHILDREN, zoom_share=SHARE, standardise=True,
        hafed=HAFEDStage(**course, branches=(1, 2)),
        updater=UpdaterStage(**course, min_cosine=0.5), policy=PolicyStage(**course),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("zooming") / "run"
    experiment.run(config, folder)
    return folder


@pytest.fixture(scope="module")
def slides(manifest):
    """Paths of the test slides, by name."""
    rows = in_split(read_manifest(manifest), "test").rows
    return {row.slide_id: row.path for row in rows}


@pytest.fixture
def command(zooming, tmp_path, monkeypatch):
    """command(*words) predicts slides; gives the lines of predictions.csv by name."""
    out = tmp_path / "out"

    def run(*words, run=zooming):
        argv = ["predict", "--run", str(run), "--out", str(out), *map(str, words)]
        cli.app(argv, standalone_mode=False)
        return {line["slide_id"]: line for line in table(out / "predictions.csv")}

    run.out = out
    return run


@pytest.fixture
def asked(monkeypatch):
    """Paths of the slides that were predicted, a list for those predicted at once."""
    groups, predict = [], Predictor._predict

    def watched(self, rows, *args):
        groups.append([row.path for row in rows])
        return predict(self, rows, *args)

    monkeypatch.setattr(Predictor, "_predict", watched)
    return groups


def test_the_report_has_paths_the_course_and_the_calibration_error(zooming):
    drawn = sorted((zooming / "heatmaps").iterdir())
    assert len(drawn) == 4
    assert [path.stem.endswith("_top") for path in drawn] == [False, True] * 2
    for path in drawn:
        with Image.open(path) as image:
            assert np.asarray(image).std() > 10
    page = (zooming / "report.html").read_text()
    metrics = json.loads((zooming / "metrics.json").read_text())
    error = metrics["test.calibration_error"]
    assert f"Expected calibration error {error:.3f}" in page
    assert '<th scope="col">calibration error</th>' in page
    assert "<strong>While zooming</strong>" in page
    assert f"after the last: tumor {metrics['test.auc']:.3f}" in page


def test_the_command_draws_and_lists_the_path_of_each_slide(
    zooming, slides, command, asked, tmp_path, capsys
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
    expected = {line["slide_id"]: line for line in table(zooming / "predictions.csv")}
    predictor = wsi_jax.load(zooming)
    for name, path in slides.items():
        prediction = predictor.predict(path)
        line, steps = lines[name], table(command.out / f"{name}_zooms.csv")
        assert line["prediction"] == expected[name]["prediction"]
        p = float(expected[name]["p_tumor"])
        assert float(line["p_tumor"]) == pytest.approx(p, abs=1e-5)
        n = len(prediction.yx)
        assert len(steps) == np.ceil(SHARE * n)
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


def test_methods_that_do_not_zoom_predict_slide_by_slide(
    finished, slides, command, asked
):
    paths = list(slides.values())[:2]
    lines = command("--together", 2, *paths, run=finished)
    assert asked == [[path] for path in paths]
    assert not list(command.out.glob("*_zooms.csv"))
    assert all(int(line["tiles"]) > 0 for line in lines.values())


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
