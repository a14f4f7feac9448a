"""Stages in a row on two resolutions: what is handed on, written down and resumed."""

import runpy
import shutil

import h5py
import jax
import numpy as np
import pytest
from processes import cohort_command, finish, go_on, kill_at
from run_files import by_slide, edit, outputs, read_json, table, times
from words import with_field
from zoom_run import FILE, STAGES, best, distilled, feature_files, logs

from wsi_jax.config_fields import from_plain
from wsi_jax.data.features import FeatureError, read_coords
from wsi_jax.data.two_level_bags import pair
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.model_card import Card
from wsi_jax.run.predict.predictor import Predictor
from wsi_jax.run.run_folder import RunError
from wsi_jax.types import TwoLevelFeatures


def make_config(manifest):
    config = runpy.run_path(str(FILE))["get_config"]()
    config.data.manifest = str(manifest)
    return config


@pytest.fixture
def config(manifest):
    return make_config(manifest)


@pytest.fixture(scope="module")
def whole(manifest, tmp_path_factory):
    """A finished run of all stages, its features below it; not to be changed."""
    folder = tmp_path_factory.mktemp("zooms") / "run"
    experiment.run(make_config(manifest), folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """That run, to be changed, with its report to be written again."""
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "report.html").unlink()
    return folder


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_each_stage_trains_by_its_own_plan(whole):
    for name, steps in STAGES.items():
        assert logs(whole)[name][-1]["step"] == steps
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


def test_what_was_distilled_is_what_the_stage_makes_of_each_slide(whole):
    distil = runpy.run_path(str(FILE))["_distil"]
    params, arrays = best(whole, "gather"), distilled(whole)
    assert len(arrays) == 20
    low, high = feature_files(whole / "features")
    for name in ("normal_001", "test_002"):
        with h5py.File(low[name]) as one, h5py.File(high[name]) as other:
            rows, below = pair(read_coords(low[name]), read_coords(high[name]), 2)
            z, u = one["features"][()][rows], other["features"][()][below]
        np.testing.assert_array_equal(arrays[name]["low"], z)
        assert arrays[name]["high"].dtype == np.float32
        wanted = distil(params, TwoLevelFeatures(z[None], u[None])).high[0]
        np.testing.assert_allclose(arrays[name]["high"], wanted, rtol=1e-5, atol=1e-6)


def test_slides_are_counted_once_and_tiles_of_both_resolutions(whole):
    slides = table(whole / "slides.csv")
    cost = read_json(whole / "cost.json")
    assert cost["slides"] == len(slides) == 20
    assert cost["tiles"] == 5 * sum(int(s["tiles"]) for s in slides)


def test_an_opened_run_predicts_the_same(whole, row):
    """A slide, from its file alone."""
    card = read_json(whole / "model.json")
    assert card.pop("method")["type"].endswith("Toy")
    assert card.pop("type").endswith("Card")
    # As `load`, which only knows methods of the package.
    fields = {name: from_plain(value) for name, value in card.items()}
    method = runpy.run_path(str(FILE))["Toy"]()
    prediction = Predictor(whole, Card(method=method, **fields)).predict(row.path)
    line = by_slide(whole / "predictions.csv")[row.slide_id]
    for name, p in prediction.probabilities.items():
        assert p == pytest.approx(float(line[f"p_{name}"]), abs=1e-5)
    assert len(prediction.attention) == len(prediction.yx) > 0
    assert prediction.cost["tiles"] == 5 * len(prediction.yx)
    assert prediction.cost["slides"] == 1


def test_a_stage_that_has_learnt_anew_leaves_the_later_ones_behind(config, copy):
    """They would go on from what is no more; what it distilled is made anew."""
    before = distilled(copy)
    shutil.rmtree(copy / "gather" / "state")
    shutil.rmtree(copy / "gather" / "best")
    (copy / "model.json").unlink()
    config.train.steps = 29
    claimed = read_json(copy / "config.json")["config"]
    claimed["train"]["steps"] = 29
    edit(copy / "config.json", config=claimed)
    with pytest.raises(RunError, match=r"guess began with parameters \w{16}.*delete"):
        experiment.run(config, copy)
    after = distilled(copy)
    assert {name: one["fingerprint"] for name, one in after.items()} != {
        name: one["fingerprint"] for name, one in before.items()
    }


def test_a_baseline_is_reported_beside_the_method(whole):
    metrics = read_json(whole / "metrics.json")
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
    cost = read_json(whole / "cost.json")
    spent = [cost[f"span.{name}.wall_s"] for name in ("opponents", "training")]
    assert 0 < min(spent) < sum(spent) < cost["wall_s"]


def test_only_what_is_missing_is_made_again_and_to_the_same_bits(config, copy, whole):
    """Slides that were distilled, and a baseline, on which nothing rests."""
    stale, cut = (copy / f"gather/distilled/{n}.h5" for n in ("normal_001", "test_002"))
    with h5py.File(stale, "a") as f:
        f.attrs["fingerprint"] = "of other weights"
        f["high"][...] = 0
    cut.write_bytes(cut.read_bytes()[:100])
    shutil.rmtree(copy / "rival")
    kept = [p for part in ("best", "distilled") for p in copy.glob(f"*/{part}/**/*")]
    before = times(kept)
    experiment.run(config, copy)
    after = times(kept)
    assert {path for path in before if after[path] != before[path]} == {stale, cut}
    assert_same(distilled(copy), distilled(whole))
    assert outputs(copy) == outputs(whole)
    # Neither began with the other.
    rival, look = (best(copy, name)["look"]["kernel"] for name in ("rival", "look"))
    np.testing.assert_array_equal(rival, look)


def test_a_baseline_that_leads_is_what_the_next_stage_begins_with(
    config, whole, tmp_path
):
    for name in ("gather", "guess", "rival"):
        shutil.copytree(whole / name, tmp_path / name)
    config.method.leads, config.features = True, str(whole / "features")
    experiment.run(config, tmp_path)
    lines = logs(tmp_path)
    first = lambda name: next(x["train.loss"] for x in lines[name] if "train.loss" in x)
    assert first("look") < first("rival")
    rivals = lambda folder: [
        line["rival.p_tumor"] for line in table(folder / "predictions.csv")
    ]
    assert rivals(tmp_path) == rivals(whole)
    metrics = lambda folder: read_json(folder / "metrics.json")
    chosen = "test.inference.rival.threshold"
    # Chosen by its own predictions of the validation slides, not by the method's.
    assert metrics(tmp_path)[chosen] == metrics(whole)[chosen]
    assert metrics(tmp_path)[chosen] != metrics(tmp_path)["test.threshold"]
    rival, look = (best(tmp_path, name)["look"]["kernel"] for name in ("rival", "look"))
    assert (rival != look).any()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("precomputed", ".", "precomputed=.*wants tiles and"),
        ("loading.max_tiles", 9, "max_tiles=9: Toy reads all"),
        ("grid.overlap_px", 4, "overlap_px=4: tiles share no"),
        ("method.children", 1, "method.children=1: at least 2"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    config, tmp_path, field, value, message
):
    with pytest.raises(ValueError, match=message):
        experiment.run(with_field(config, field, value), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_slide_without_a_whole_tile_is_refused(config, copy):
    """Its children were read, but of each tile one is missing."""
    _, high = feature_files(copy / "features")
    with h5py.File(high["normal_001"], "a") as f:
        for name in ("features", "coords"):
            attrs, rows = dict(f[name].attrs), f[name][()]
            del attrs["crc32"]  # as if written so
            del f[name]
            f[name] = rows[np.arange(len(rows)) % 4 > 0]
            f[name].attrs.update(attrs)
    with pytest.raises(RunError, match="'normal_001' has gone since"):
        experiment.run(config, copy)
    for stage in STAGES:  # as the message says
        shutil.rmtree(copy / stage)
    experiment.run(config, copy)
    lines = by_slide(copy / "slides.csv")
    reason = lines.pop("normal_001")["reason"]
    assert "no tile of which all children" in reason
    assert {line["status"] for line in lines.values()} == {"encoded"}


def test_features_that_do_not_belong_together_stop_the_run(config, whole, tmp_path):
    """Children by another encoder, put where those of this one were."""
    folder = shutil.copytree(whole / "features", tmp_path / "features")
    _, high = feature_files(folder)
    with h5py.File(high["normal_001"], "a") as f:
        f["features"].attrs["encoder"] = "another"
    config.features = str(folder)
    with pytest.raises(FeatureError, match="disagree, encoder: resnet18 and another"):
        experiment.run(config, tmp_path / "run")


def test_folds_train_their_stages_apart(config, whole, tmp_path):
    config.features = str(whole / "features")
    config.data.folds, config.train.steps, config.method.guess_steps = 2, 2, 2
    config.train.validate_every = 1
    experiment.run(config, tmp_path / "run")
    folders = sorted((tmp_path / "run").glob("fold_*/gather/distilled"))
    assert len(folders) == 2
    assert all(list(folder.glob("*.h5")) for folder in folders)


DISTILS = "gather/distilled/*.h5"
EACH = ["gather/state/5", DISTILS, "guess/state/5", "rival/state/5", "look/state/10"]


@pytest.mark.long
@pytest.mark.parametrize("patterns", [[DISTILS], EACH])
def test_killed_in_a_stage_it_ends_as_if_nothing_had_been(
    start, manifest, whole, tmp_path, patterns
):
    """While it distils; or in every stage, one after the other."""
    folder, features = tmp_path / "run", whole / "features"
    more = {"features": features, "train.save_every": 5}
    command = cohort_command(FILE, folder, manifest, **more)
    for pattern in patterns:
        kill_at(start(*command), folder, pattern)
        assert not (folder / "model.json").exists()
    go_on(command)
    assert outputs(folder) == outputs(whole)
    assert logs(folder) == logs(whole)
    assert_same(distilled(folder), distilled(whole))
    for stage in STAGES:
        assert_same(best(folder, stage), best(whole, stage))


@pytest.mark.long
def test_killed_between_the_resolutions_it_encodes_only_what_is_missing(
    start, manifest, whole, tmp_path
):
    folder = tmp_path / "run"
    command = cohort_command(FILE, folder, manifest, encode_batch=8)
    kill_at(start(*command), folder, "features/*_children/*/*.h5")
    low, high = feature_files(folder / "features")
    assert len(low) == 20
    assert len(high) < 20
    before = times([*low.values(), *high.values()])
    finish(start(*command))
    assert times(before) == before
    assert len(feature_files(folder / "features")[1]) == 20
    slides = lambda run: by_slide(run / "predictions.csv").keys()
    assert slides(folder) == slides(whole)
