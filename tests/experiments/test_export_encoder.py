"""A run of PatchAll, and its trunk as an encoder: what it may not be used on."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from run_files import read_json, table

from experiments.pretraining.export_encoder import ExportError, export
from wsi_jax import config_fields
from wsi_jax.data.cohort import CohortError, read_manifest
from wsi_jax.methods.patch_all import PatchAll
from wsi_jax.nets import pretrained
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder
from wsi_jax.nets.crop_options import HeadConfig
from wsi_jax.nets.weights_metadata import read_weights_metadata, to_header
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.predict.predictor import load
from wsi_jax.run.run_folder import write_json
from wsi_jax.slides.grid import Grid

TRUNK = ConvNeXtEncoder(blocks=(1,), width=8, stem=4, scale=1.0)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run of a method that learns from pixels; not to be changed."""
    config = tiny()
    config.features, config.encoder, config.heatmaps = "", None, 1
    config.grid = Grid(mpp=16.0, size_px=4, min_tissue=0.5)
    head = HeadConfig(width=8, attention_width=4)
    config.method = PatchAll(trunk=TRUNK, mpp=4.0, tile_px=16, head=head)
    config.train.steps = config.train.validate_every = 2
    config.train.batch, config.train.class_weights = 4, False
    folder = tmp_path_factory.mktemp("trunk") / "run"
    experiment.run(config, folder)
    return folder


@pytest.fixture(scope="module")
def weights(run):
    path = run.parent / "encoder.safetensors"
    export(run, path)
    return path


def clusters(manifest, *splits):
    rows = read_manifest(manifest).rows
    return {
        name for row in rows if row.split in splits for name in row.cluster.split(";")
    }


def test_a_run_reads_every_tile(run):
    page = (run / "report.html").read_text()
    assert "Every tile of 16 px at 4 um/px" in page
    last = table(run / "slides.csv")[-1]  # of the test slides
    prediction = load(run).predict(last["path"])
    assert prediction.cost["tiles"] == int(last["tiles"])


def test_features_are_those_of_the_trunk(run, weights):
    encoder = dataclasses.replace(TRUNK, weights=str(weights))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    apply = jax.jit(encoder.make().apply)
    wanted = apply(load(run).params["trunk"], pixels)
    np.testing.assert_array_equal(apply(encoder.params(), pixels), wanted)
    assert (np.asarray(apply(TRUNK.params(), pixels)) != np.asarray(wanted)).any()


def test_weights_say_what_they_have_learnt_from(run, weights, manifest):
    origin = read_weights_metadata(weights)
    assert set(origin.training_ids) == clusters(manifest, "train", "val")
    assert not set(origin.training_ids) & clusters(manifest, "test")
    assert origin.classes == ("normal", "tumor")
    encoder = dataclasses.replace(TRUNK, weights=str(weights))
    assert encoder.training_ids() == origin.training_ids
    assert encoder.trained_mpp() == 4.0
    assert {"commit", "date", "versions"} <= origin.made.keys()


def test_a_cohort_that_tests_on_them_is_refused(tiny, weights, edited, tmp_path):
    config = tiny()
    config.encoder = dataclasses.replace(TRUNK, weights=str(weights))
    config.grid.mpp, config.features = 4.0, ""
    turned = {"train": "test", "test": "train"}
    swap = lambda row: row | {"split": turned.get(row["split"], row["split"])}
    config.data.manifest = str(edited(swap))
    with pytest.raises(CohortError, match="encoder"):
        experiment.run(config, tmp_path / "run")


def test_what_the_trunk_began_with_is_not_forgotten(run, weights, tmp_path):
    """Trained on from weights that had learnt from more, it names that as well."""
    params = jax.device_get(TRUNK.params()["params"])
    first = tmp_path / "first.safetensors"
    origin = read_weights_metadata(weights)._replace(training_ids=("elsewhere:1",))
    pretrained.save(first, params, to_header(origin))
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    plain = config_fields.to_plain(dataclasses.replace(TRUNK, weights=str(first)))
    config = read_json(folder / "config.json")
    config["config"]["method"]["trunk"] = plain
    write_json(folder / "config.json", config)
    export(folder, tmp_path / "second.safetensors")
    ids = read_weights_metadata(tmp_path / "second.safetensors").training_ids
    assert set(ids) == {"elsewhere:1", *read_weights_metadata(weights).training_ids}


def test_what_has_no_trunk_of_its_own_is_refused(run, finished, tmp_path):
    out = tmp_path / "encoder.safetensors"
    with pytest.raises(ExportError, match="ABMIL pools features and trains no trunk"):
        export(finished, out)
    fold = tmp_path / "fold_0"
    shutil.copytree(run, fold)
    (fold / "manifest.csv").unlink()
    with pytest.raises(ExportError, match="one fold of several"):
        export(fold, out)
    assert not out.exists()
