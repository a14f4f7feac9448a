"""Stages in a row on two resolutions: what is handed on, written down and resumed."""

import csv
import json
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
import time

import h5py
import jax
import numpy as np
import pytest

from wsi_jax.config_io import from_plain
from wsi_jax.data.cohort import read_manifest
from wsi_jax.data.features import FeatureError, read_coords
from wsi_jax.data.two_level_bags import pair
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.model_card import Card
from wsi_jax.run.predictor import Predictor
from wsi_jax.run.run_folder import RunError
from wsi_jax.training.checkpoint import Checkpoints
from wsi_jax.training.log import read_metrics
from wsi_jax.types import TwoLevelFeatures

HERE = pathlib.Path(__file__).parent
FILE = HERE / "tiny_zooms.py"
STAGES = {"gather": 30, "guess": 12, "rival": 30, "look": 30}
SAID = ("metrics.json", "predictions.csv")


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def said(folder):
    return [(folder / name).read_bytes() for name in SAID]


def logs(folder):
    return {name: read_metrics(folder / name / "metrics.jsonl") for name in STAGES}


def distilled(folder):
    """All arrays and attributes of what was distilled."""
    found = {}
    for path in sorted(folder.glob("gather/distilled/*.h5")):
        with h5py.File(path) as f:
            arrays = {name: f[name][()] for name in f}
            found[path.stem] = arrays | dict(f.attrs)
    return found


def kept(folder, stage):
    """The parameters that validation liked best."""
    manager = Checkpoints(folder / stage / "best")
    step = manager._manager.latest_step()
    tree = manager._manager.restore(step)["tree"]
    manager.close()
    return tree


@pytest.fixture(scope="module")
def shared_features(tmp_path_factory):
    return tmp_path_factory.mktemp("zoom_features")


@pytest.fixture
def config(manifest, shared_features):
    return make(manifest, shared_features)


def make(manifest, features):
    config = runpy.run_path(str(FILE))["get_config"]()
    config.data.manifest, config.features = str(manifest), str(features)
    return config


@pytest.fixture(scope="module")
def zoomed(manifest, shared_features, tmp_path_factory):
    """A finished run of all stages; not to be changed."""
    folder = tmp_path_factory.mktemp("zoomed") / "run"
    experiment.run(make(manifest, shared_features), folder)
    return folder


@pytest.fixture
def copy(zoomed, tmp_path):
    """That run, to be changed, with its report to be written again."""
    folder = tmp_path / "run"
    shutil.copytree(zoomed, folder)
    (folder / "report.html").unlink()
    return folder


def test_each_stage_trains_by_its_own_plan(zoomed):
    for name, steps in STAGES.items():
        lines = logs(zoomed)[name]
        assert lines[-1]["step"] == steps
    told = lambda name: {key for line in logs(zoomed)[name] for key in line}
    assert "val.log_loss" in told("gather") & told("look")
    assert told("guess") & {"val.log_loss", "val.loss"} == {"val.loss"}
    losses = [line["val.loss"] for line in logs(zoomed)["guess"] if "val.loss" in line]
    assert losses[-1] < losses[0]
    assert "Training: guess" in (zoomed / "report.html").read_text()


def test_a_stage_begins_with_what_those_before_have_learnt(zoomed):
    """And, as it leaves that alone, the last has all of it, bit for bit."""
    first, second, _, last = (kept(zoomed, name) for name in STAGES)
    assert set(first) == {"gather", "judge"}
    assert set(last) == {"gather", "judge", "guess", "look"}
    for earlier in (first, second):
        for name in earlier:
            np.testing.assert_array_equal(earlier[name]["kernel"], last[name]["kernel"])
    assert np.ptp(first["judge"]["kernel"]) > 0
    assert np.ptp(last["look"]["kernel"]) > 0


def test_what_was_distilled_is_what_the_stage_makes_of_each_slide(
    zoomed, shared_features
):
    distil = runpy.run_path(str(FILE))["_distil"]
    params, found = kept(zoomed, "gather"), distilled(zoomed)
    assert len(found) == 20
    low, high = files(shared_features)
    for name in ("normal_001", "test_002"):
        with h5py.File(low[name]) as one, h5py.File(high[name]) as other:
            rows, below = pair(read_coords(low[name]), read_coords(high[name]), 2)
            z, u = one["features"][()][rows], other["features"][()][below]
        np.testing.assert_array_equal(found[name]["low"], z)
        assert found[name]["high"].dtype == np.float32
        wanted = distil(params, TwoLevelFeatures(z[None], u[None])).high[0]
        np.testing.assert_allclose(found[name]["high"], wanted, rtol=1e-5, atol=1e-6)


def files(features):
    """Feature files of tiles and of children, by slide."""
    paths = list(features.glob("*/*/*.h5"))
    split = lambda finer: {
        p.stem: p for p in paths if ("_children" in p.parts[-3]) == finer
    }
    return split(False), split(True)


def test_slides_are_counted_once_and_tiles_of_both_resolutions(
    config, tmp_path, zoomed
):
    config.features = ""
    experiment.run(config, tmp_path / "run")
    slides = table(tmp_path / "run" / "slides.csv")
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert cost["slides"] == len(slides) == 20
    assert cost["tiles"] == 5 * sum(int(s["tiles"]) for s in slides)
    assert said(tmp_path / "run") == said(zoomed)


def test_an_opened_run_says_what_it_said(zoomed, manifest):
    """Of a slide, from its file alone."""
    lines = {line["slide_id"]: line for line in table(zoomed / "predictions.csv")}
    row = next(r for r in read_manifest(manifest).rows if r.split == "test")
    card = json.loads((zoomed / "model.json").read_text())
    assert card["method"]["type"].endswith("Toy")
    predictor = predictor_of(zoomed)
    verdict = predictor.predict(row.path)
    for name, p in verdict.probabilities.items():
        assert p == pytest.approx(float(lines[row.slide_id][f"p_{name}"]), abs=1e-5)
    assert len(verdict.attention) == len(verdict.yx) > 0
    assert verdict.cost["tiles"] == 5 * len(verdict.yx)
    assert verdict.cost["slides"] == 1


def predictor_of(folder):
    """As `load`, which only knows methods of the package."""
    plain = json.loads((folder / "model.json").read_text())
    method = runpy.run_path(str(FILE))["Toy"]()
    told = {k: from_plain(v) for k, v in plain.items() if k not in ("type", "method")}
    return Predictor(folder, Card(method=method, **told))


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


def test_an_opponent_is_told_and_nothing_rests_on_it(config, copy, zoomed):
    """What was trained without it stands."""
    metrics = json.loads((zoomed / "metrics.json").read_text())
    for name in ("auc", "auc_lo", "calibration_error"):
        pair = metrics[f"test.inference.look.{name}"], metrics[f"test.{name}"]
        np.testing.assert_equal(*pair)  # no ends with so few slides: NaN, twice
    # It and the last stage are alike in all, and so are its numbers.
    of = lambda way: {
        name.removeprefix(f"test.inference.{way}."): value
        for name, value in metrics.items()
        if name.startswith(f"test.inference.{way}.")
    }
    np.testing.assert_equal(of("rival"), of("look"))
    assert of("rival")["threshold"] == metrics["test.threshold"]
    assert "calibration error</th>" in (zoomed / "report.html").read_text()
    cost = json.loads((zoomed / "cost.json").read_text())
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
    assert said(copy) == said(zoomed)
    # Neither began with the other.
    rival, look = (kept(copy, name)["look"]["kernel"] for name in ("rival", "look"))
    np.testing.assert_array_equal(rival, look)


def test_an_opponent_that_leads_is_what_the_next_stage_begins_with(
    config, zoomed, tmp_path
):
    for name in ("gather", "guess", "rival"):
        shutil.copytree(zoomed / name, tmp_path / name)
    config.method.leads = True
    experiment.run(config, tmp_path)
    lines = logs(tmp_path)
    first = lambda name: next(x["train.loss"] for x in lines[name] if "train.loss" in x)
    assert first("look") < first("rival")
    rivals = lambda folder: [
        line["rival.p_tumor"] for line in table(folder / "predictions.csv")
    ]
    assert rivals(tmp_path) == rivals(zoomed)
    read = lambda folder: json.loads((folder / "metrics.json").read_text())
    chosen = "test.inference.rival.threshold"
    # Chosen by its own predictions of the validation slides, not by the method's.
    assert read(tmp_path)[chosen] == read(zoomed)[chosen]
    assert read(tmp_path)[chosen] != read(tmp_path)["test.threshold"]
    rival, look = (kept(tmp_path, name)["look"]["kernel"] for name in ("rival", "look"))
    assert (rival != look).any()


def test_only_what_is_missing_is_distilled_and_to_the_same_bits(config, copy, zoomed):
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
    one, two = distilled(copy), distilled(zoomed)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert said(copy) == said(zoomed)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: setattr(c, "precomputed", "."), "precomputed=.*wants tiles and"),
        (lambda c: setattr(c.loading, "max_tiles", 9), "max_tiles=9: Toy sees all"),
        (lambda c: setattr(c.grid, "overlap_px", 4), "overlap_px: tiles share no"),
        (lambda c: setattr(c.method, "children", 1), "method.children=1: at least 2"),
        (
            lambda c: setattr(c.method, "guess_batch", 3),
            r"stage 'guess': --config\.train\.batch=3 does not divide among 8",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    config, tmp_path, change, told
):
    change(config)
    with pytest.raises(ValueError, match=told):
        experiment.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_slide_without_a_whole_tile_is_refused(config, tmp_path):
    """Its children were read, but of each tile one is missing."""
    config.features = ""
    config.train.steps, config.method.guess_steps = 1, 1
    folder = tmp_path / "run"
    experiment.run(config, folder)
    _, high = files(folder / "features")
    with h5py.File(high["normal_001"], "a") as f:
        for name in ("features", "coords"):
            attrs, kept = dict(f[name].attrs), f[name][()]
            del attrs["crc32"]  # as if written so
            del f[name]
            f[name] = kept[np.arange(len(kept)) % 4 > 0]
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
    config, shared_features, zoomed, tmp_path
):
    """Children by another encoder, put where those of this one were."""
    del zoomed  # has made them
    folder = tmp_path / "features"
    shutil.copytree(shared_features, folder)
    _, high = files(folder)
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


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts the run in a process of its own."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith("JAX_")}
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    started = []

    def process(*words):
        log = tmp_path_factory.mktemp("log") / "log.txt"
        with log.open("w") as file:
            command = [sys.executable, "-m", "experiments.cohort", *words]
            one = subprocess.Popen(
                command, cwd=HERE.parent.parent, env=kept | settings,
                stdout=file, stderr=file,
            )  # fmt: skip
        started.append(one)
        one.log = log
        return one

    yield process
    for one in started:
        one.kill()
        one.wait()


@pytest.fixture(scope="module")
def words(manifest, tmp_path_factory):
    shared = tmp_path_factory.mktemp("process_features")
    return lambda folder, *more: (
        f"--config={FILE}",
        f"--config.data.manifest={manifest}",
        f"--config.features={shared}",
        f"--config.run_dir={folder}",
        "--config.train.save_every=5",
        "--config.heatmaps=0",
        *more,
    )


def finish(process):
    assert process.wait() == 0, process.log.read_text()


def kill_at(process, folder, sight):
    """Kills a process as soon as there is a file."""
    while not any(folder.glob(sight)):
        assert process.poll() is None, process.log.read_text()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(start, words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(start(*words(folder)))
    return folder


def test_killed_in_every_stage_it_ends_as_if_nothing_had_been(
    start, words, undisturbed, tmp_path
):
    """In the first, while it distils, in the second and in the last."""
    folder = tmp_path / "run"
    sights = "gather/state/5", "gather/distilled/*.h5", "guess/state/5", "rival/state/5"
    for sight in sights:
        kill_at(start(*words(folder)), folder, sight)
        assert not (folder / "model.json").exists()
    kill_at(start(*words(folder)), folder, "look/state/10")
    finish(start(*words(folder)))
    assert said(folder) == said(undisturbed)
    assert logs(folder) == logs(undisturbed)
    one, two = distilled(folder), distilled(undisturbed)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    for stage in STAGES:
        jax.tree.map(
            np.testing.assert_array_equal, kept(folder, stage), kept(undisturbed, stage)
        )


@pytest.mark.long
def test_killed_between_the_resolutions_it_encodes_only_what_is_missing(
    start, words, undisturbed, tmp_path
):
    folder = tmp_path / "run"
    command = words(folder, "--config.features=", "--config.encode_batch=1")
    kill_at(start(*command), folder, "features/*_children/*/*.h5")
    low, high = files(folder / "features")
    assert len(low) == 20
    assert len(high) < 20
    times = {p: p.stat().st_mtime_ns for p in [*low.values(), *high.values()]}
    finish(start(*command))
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert len(files(folder / "features")[1]) == 20
    slides = lambda run: [line["slide_id"] for line in table(run / "predictions.csv")]
    assert slides(folder) == slides(undisturbed)
