"""Stages in a row on two resolutions: what is handed on, written down and resumed."""

import json
import runpy
import shutil

import h5py
import jax
import numpy as np
import pytest
from processes import outputs
from zoom_run import FILE, STAGES, best, distilled, feature_files, logs, table

from wsi_jax.config_fields import from_plain
from wsi_jax.data.cohort import read_manifest
from wsi_jax.data.features import FeatureError, read_coords
from wsi_jax.data.two_level_bags import pair
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.model_card import Card
from wsi_jax.run.predictor import Predictor
from wsi_jax.run.run_folder import RunError
from wsi_jax.types import TwoLevelFeatures


@pytest.fixture(scope="module")
def shared_features(tmp_path_factory):
    return tmp_path_factory.mktemp("zoom_features")


@pytest.fixture
def config(manifest, shared_features):
    return make_config(manifest, shared_features)


def make_config(manifest, features):
    config = runpy.run_path(str(FILE))["get_config"]()
    config.data.manifest, config.features = str(manifest), str(features)
    return config


@pytest.fixture(scope="module")
def whole(manifest, shared_features, tmp_path_factory):
    """A finished run of all stages; not to be changed."""
    folder = tmp_path_factory.mktemp("zooms") / "run"
    experiment.run(make_config(manifest, shared_features), folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """That run, to be changed, with its report to be written again."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "report.html").unlink()
    return folder


def test_each_stage_trains_by_its_own_plan(whole):
    for name, steps in STAGES.items():
        lines = logs(whole)[name]
        assert lines[-1]["step"] == steps
    metrics = lambda name: {key for line in logs(whole)[name] for key in line}
    assert "val.log_loss" in metrics("gather") & metrics("look")
    assert metrics("guess") & {"val.log_loss", "val.loss"} == {"val.loss"}
    losses = [line["val.loss"] for line in logs(whole)["guess"] if "val.loss" in line]
    assert losses[-1] < losses[0]
    assert "Training: guess" in (whole / "report.html").read_text()


def test_a_stage_begins_with_what_those_before_have_learnt(whole):
    """And, as it leaves that alone, the last has all of it, bit for bit."""
    first, second, _, last = (best(whole, name) for name in STAGES)
    assert set(first) == {"gather", "judge"}
    assert set(last) == {"gather", "judge", "guess", "look"}
    for earlier in (first, second):
        for name in earlier:
            np.testing.assert_array_equal(earlier[name]["kernel"], last[name]["kernel"])
    assert np.ptp(first["judge"]["kernel"]) > 0
    assert np.ptp(last["look"]["kernel"]) > 0


def test_what_was_distilled_is_what_the_stage_makes_of_each_slide(
    whole, shared_features
):
    distil = runpy.run_path(str(FILE))["_distil"]
    params, arrays = best(whole, "gather"), distilled(whole)
    assert len(arrays) == 20
    low, high = feature_files(shared_features)
    for name in ("normal_001", "test_002"):
        with h5py.File(low[name]) as one, h5py.File(high[name]) as other:
            rows, below = pair(read_coords(low[name]), read_coords(high[name]), 2)
            z, u = one["features"][()][rows], other["features"][()][below]
        np.testing.assert_array_equal(arrays[name]["low"], z)
        assert arrays[name]["high"].dtype == np.float32
        wanted = distil(params, TwoLevelFeatures(z[None], u[None])).high[0]
        np.testing.assert_allclose(arrays[name]["high"], wanted, rtol=1e-5, atol=1e-6)


def test_slides_are_counted_once_and_tiles_of_both_resolutions(config, tmp_path, whole):
    config.features = ""
    experiment.run(config, tmp_path / "run")
    slides = table(tmp_path / "run" / "slides.csv")
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert cost["slides"] == len(slides) == 20
    assert cost["tiles"] == 5 * sum(int(s["tiles"]) for s in slides)
    assert outputs(tmp_path / "run") == outputs(whole)


def test_an_opened_run_predicts_the_same(whole, manifest):
    """A slide, from its file alone."""
    lines = {line["slide_id"]: line for line in table(whole / "predictions.csv")}
    row = next(r for r in read_manifest(manifest).rows if r.split == "test")
    card = json.loads((whole / "model.json").read_text())
    assert card["method"]["type"].endswith("Toy")
    predictor = predictor_of(whole)
    prediction = predictor.predict(row.path)
    for name, p in prediction.probabilities.items():
        assert p == pytest.approx(float(lines[row.slide_id][f"p_{name}"]), abs=1e-5)
    assert len(prediction.attention) == len(prediction.yx) > 0
    assert prediction.cost["tiles"] == 5 * len(prediction.yx)
    assert prediction.cost["slides"] == 1


def predictor_of(folder):
    """As `load`, which only knows methods of the package."""
    plain = json.loads((folder / "model.json").read_text())
    method = runpy.run_path(str(FILE))["Toy"]()
    fields = {k: from_plain(v) for k, v in plain.items() if k not in ("type", "method")}
    return Predictor(folder, Card(method=method, **fields))


def test_a_stage_that_has_learnt_anew_leaves_the_later_ones_behind(config, copy):
    """They would go on from what is no more; what it distilled is made anew."""
    before = distilled(copy)
    shutil.rmtree(copy / "gather" / "state")
    shutil.rmtree(copy / "gather" / "best")
    (copy / "model.json").unlink()
    config.train.steps = 29
    claimed = json.loads((copy / "config.json").read_text())
    claimed["config"]["train"]["steps"] = 29
    (copy / "config.json").write_text(json.dumps(claimed))
    with pytest.raises(RunError, match=r"guess began with parameters \w{16}.*delete"):
        experiment.run(config, copy)
    after = distilled(copy)
    assert {name: one["fingerprint"] for name, one in after.items()} != {
        name: one["fingerprint"] for name, one in before.items()
    }
    for later in ("guess", "rival", "look"):
        shutil.rmtree(copy / later)
    experiment.run(config, copy)


def test_a_baseline_is_reported_and_nothing_rests_on_it(config, copy, whole):
    """What was trained without it stands."""
    metrics = json.loads((whole / "metrics.json").read_text())
    for name in ("auc", "auc_lo", "calibration_error"):
        pair = metrics[f"test.inference.look.{name}"], metrics[f"test.{name}"]
        np.testing.assert_equal(*pair)  # no ends with so few slides: NaN, twice
    # It and the last stage are alike in all, and so are its numbers.
    of = lambda stage: {
        name.removeprefix(f"test.inference.{stage}."): value
        for name, value in metrics.items()
        if name.startswith(f"test.inference.{stage}.")
    }
    np.testing.assert_equal(of("rival"), of("look"))
    assert of("rival")["threshold"] == metrics["test.threshold"]
    assert "calibration error</th>" in (whole / "report.html").read_text()
    cost = json.loads((whole / "cost.json").read_text())
    spent = [cost[f"span.{name}.wall_s"] for name in ("opponents", "training")]
    assert 0 < min(spent) < sum(spent) < cost["wall_s"]
    shutil.rmtree(copy / "rival")
    times = lambda: {
        path: path.stat().st_mtime_ns
        for stage in ("gather", "guess", "look")
        for path in (copy / stage / "best").rglob("*")
        if path.is_file()
    }
    before = times()
    experiment.run(config, copy)
    assert times() == before
    assert outputs(copy) == outputs(whole)
    # Neither began with the other.
    rival, look = (best(copy, name)["look"]["kernel"] for name in ("rival", "look"))
    np.testing.assert_array_equal(rival, look)


def test_a_baseline_that_leads_is_what_the_next_stage_begins_with(
    config, whole, tmp_path
):
    for name in ("gather", "guess", "rival"):
        shutil.copytree(whole / name, tmp_path / name)
    config.method.leads = True
    experiment.run(config, tmp_path)
    lines = logs(tmp_path)
    first = lambda name: next(x["train.loss"] for x in lines[name] if "train.loss" in x)
    assert first("look") < first("rival")
    rivals = lambda folder: [
        line["rival.p_tumor"] for line in table(folder / "predictions.csv")
    ]
    assert rivals(tmp_path) == rivals(whole)
    read = lambda folder: json.loads((folder / "metrics.json").read_text())
    chosen = "test.inference.rival.threshold"
    # Chosen by its own predictions of the validation slides, not by the method's.
    assert read(tmp_path)[chosen] == read(whole)[chosen]
    assert read(tmp_path)[chosen] != read(tmp_path)["test.threshold"]
    rival, look = (best(tmp_path, name)["look"]["kernel"] for name in ("rival", "look"))
    assert (rival != look).any()


def test_only_what_is_missing_is_distilled_and_to_the_same_bits(config, copy, whole):
    folder = copy / "gather" / "distilled"
    stale, cut = folder / "normal_001.h5", folder / "test_002.h5"
    with h5py.File(stale, "a") as f:
        f.attrs["fingerprint"] = "of other weights"
        f["high"][...] = 0
    cut.write_bytes(cut.read_bytes()[:100])
    times = {p: p.stat().st_mtime_ns for p in folder.glob("*.h5")}
    experiment.run(config, copy)
    changed = {p for p in times if p.stat().st_mtime_ns != times[p]}
    assert changed == {stale, cut}
    one, two = distilled(copy), distilled(whole)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert outputs(copy) == outputs(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c, "precomputed", "."), "precomputed=.*wants tiles and"),
        (lambda c: setattr(c.loading, "max_tiles", 9), "max_tiles=9: Toy reads all"),
        (lambda c: setattr(c.grid, "overlap_px", 4), "overlap_px=4: tiles share no"),
        (lambda c: setattr(c.method, "children", 1), "method.children=1: at least 2"),
        (
            lambda c: setattr(c.method, "guess_batch", 3),
            r"stage 'guess': --config\.train\.batch=3 does not divide among 8",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    config, tmp_path, change, message
):
    change(config)
    with pytest.raises(ValueError, match=message):
        experiment.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_slide_without_a_whole_tile_is_refused(config, tmp_path):
    """Its children were read, but of each tile one is missing."""
    config.features = ""
    config.train.steps, config.method.guess_steps = 1, 1
    folder = tmp_path / "run"
    experiment.run(config, folder)
    _, high = feature_files(folder / "features")
    with h5py.File(high["normal_001"], "a") as f:
        for name in ("features", "coords"):
            attrs, rows = dict(f[name].attrs), f[name][()]
            del attrs["crc32"]  # as if written so
            del f[name]
            f[name] = rows[np.arange(len(rows)) % 4 > 0]
            f[name].attrs.update(attrs)
    (folder / "report.html").unlink()
    with pytest.raises(RunError, match="'normal_001' has gone since"):
        experiment.run(config, folder)
    for stage in STAGES:  # as the message says
        shutil.rmtree(folder / stage)
    experiment.run(config, folder)
    lines = {line["slide_id"]: line for line in table(folder / "slides.csv")}
    assert lines["normal_001"]["status"] == "refused"
    assert "no tile of which all children" in lines["normal_001"]["reason"]
    assert {line["status"] for n, line in lines.items() if n != "normal_001"} == {
        "encoded"
    }


def test_features_that_do_not_belong_together_stop_the_run(
    config, shared_features, whole, tmp_path
):
    """Children by another encoder, put where those of this one were."""
    del whole  # has made them
    folder = tmp_path / "features"
    shutil.copytree(shared_features, folder)
    _, high = feature_files(folder)
    with h5py.File(high["normal_001"], "a") as f:
        f["features"].attrs["encoder"] = "another"
    config.features = str(folder)
    with pytest.raises(FeatureError, match="disagree, encoder: resnet18 and another"):
        experiment.run(config, tmp_path / "run")


def test_folds_train_their_stages_apart(config, tmp_path):
    config.data.folds, config.train.steps, config.method.guess_steps = 2, 2, 2
    config.train.validate_every = 1
    experiment.run(config, tmp_path / "run")
    folders = sorted((tmp_path / "run").glob("fold_*/gather/distilled"))
    assert len(folders) == 2
    assert all(list(folder.glob("*.h5")) for folder in folders)
