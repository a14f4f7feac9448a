"""An encoder from labelled tiles: what it leaves, resumes from, and may not be used on.

Tiles are smooth or rough, of any colour: seconds suffice to tell them apart.
"""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from labelled_tiles import KINDS, small
from safetensors.numpy import load_file

from experiments.pretraining import pretrain_tiles, tile_evaluation
from experiments.pretraining.sim_clr import SimCLR
from experiments.pretraining.tile_classifier import TileClassifier
from experiments.pretraining.tile_sets import Tiles
from experiments.tile_clusters import split_of
from wsi_jax.config_fields import to_plain
from wsi_jax.nets import pretrained
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.pretrained import WeightsError
from wsi_jax.nets.vit_encoder import Output, ViTEncoder
from wsi_jax.nets.weights_metadata import (
    WeightsMetadata,
    read_weights_metadata,
    to_header,
)
from wsi_jax.run.run_folder import RunError, read_csv
from wsi_jax.training.log import read_metrics
from wsi_jax.training.loop import Train
from wsi_jax.types import Task


@pytest.fixture
def config(tiles):
    return small(tiles)


def test_weights_say_what_made_them(trained, tiles):
    origin = read_weights_metadata(trained / "encoder.safetensors")
    assert origin.classes == tuple(sorted(KINDS))
    clusters = {row["cluster"] for row in read_csv(tiles / "index.csv")}
    assert set(origin.training_ids) == {c for c in clusters if split_of(c) == "encoder"}
    assert {"config", "commit", "date", "versions"} <= origin.made.keys()
    assert origin.made["config"] == json.loads(json.dumps(to_plain(small(tiles))))


def test_an_encoder_loads_them_and_gives_the_features_that_were_trained(trained, tiles):
    """Features and classifier of the file give the probabilities that were written."""
    path = trained / "encoder.safetensors"
    encoder = Encoder(stages=1, width=8, weights=str(path))
    sets = small(tiles).sets()
    x = jax.jit(encoder.make().apply)(encoder.params(), sets.test.pixels)
    file = load_file(path)
    logits = x @ file["fc.weight"].T + file["fc.bias"][None]
    lines = read_csv(trained / "predictions.csv")
    assert [line["file"] for line in lines] == list(sets.test.name)
    written = [[float(line[f"p_{name}"]) for name in sets.classes] for line in lines]
    np.testing.assert_allclose(jax.nn.softmax(logits), written, atol=1e-5)
    for change in ({"norm": NormKind.group}, {"width": 4}):
        with pytest.raises(WeightsError, match="this one has"):
            dataclasses.replace(encoder, **change).params()


def test_metrics_are_those_of_the_predictions(trained):
    """Within a group, its own classes alone compete."""
    metrics = json.loads((trained / "metrics.json").read_text())
    lines = read_csv(trained / "predictions.csv")
    for group, kinds in (("x", KINDS[:2]), ("y", KINDS[2:])):
        mine = [line for line in lines if line["label"] in kinds]
        best = [max(kinds, key=lambda k, line=line: line[f"p_{k}"]) for line in mine]
        right = [kind == line["label"] for kind, line in zip(best, mine, strict=True)]
        of = lambda name, group=group: metrics[f"test.{group}.{name}"]
        assert of("n") == len(mine)
        assert of("n_clusters") == len({line["cluster"] for line in mine}) < of("n")
        assert of("accuracy") == pytest.approx(np.mean(right))
        between = of("accuracy") - of("baseline_accuracy")
        assert of("difference") == pytest.approx(between)
        for name in ("accuracy", "baseline_accuracy", "difference"):
            assert of(f"{name}_lo") <= of(name) <= of(f"{name}_hi")
        # Smooth or rough, bright or dark: colours and gradients say all there is.
        assert of("baseline_accuracy") > 0.95
    assert pretrain_tiles.text(metrics).count("colours and gradients") == 2


def test_the_same_command_does_nothing_and_another_config_is_refused(trained, config):
    times = lambda: {p: p.stat().st_mtime_ns for p in sorted(trained.rglob("*"))}
    before = times()
    pretrain_tiles.run(config, trained)
    config.train.seed = 1
    with pytest.raises(RunError, match=r"train\.seed: was 0, is 1"):
        pretrain_tiles.run(config, trained)
    assert times() == before


def test_resumed_is_uninterrupted(trained, config, tmp_path, monkeypatch):
    """Stopped in step 7, after the checkpoint of step 4: bit for bit."""

    @contextlib.contextmanager
    def stop(what, total):
        done = 0

        def advance(n=1, note="", before=False):
            nonlocal done
            done += n
            if done == 7:
                raise KeyboardInterrupt

        yield advance

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_tiles, "progress", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain_tiles.run(config, tmp_path)
    assert not (tmp_path / "encoder.safetensors").exists()
    pretrain_tiles.run(config, tmp_path)
    for name in ("metrics.json", "predictions.csv"):
        assert (tmp_path / name).read_text() == (trained / name).read_text()
    one, two = (load_file(f / "encoder.safetensors") for f in (trained, tmp_path))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    logged = lambda f: read_metrics(f / "train" / "metrics.jsonl")
    assert logged(tmp_path) == logged(trained)


def test_what_is_asked_wrong_stops_before_training(config, tmp_path):
    def refused(match, error=RunError, **change):
        with pytest.raises(error, match=match):
            pretrain_tiles.run(dataclasses.replace(config, **change), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused(r"add --config\.tiles=FOLDER", tiles="")
    refused(r"--config\.groups has .*two or more of", groups=(("x_rough", "bone"),))
    refused(r"--config\.train\.batch=12", train=Train(batch=12))
    method = TileClassifier(encoder=Encoder(weights="gone.safetensors"))
    refused(r"encoder\.weights=gone\.safetensors: no such", ValueError, method=method)
    method = SimCLR(encoder=Encoder(), scales=(1, 999))
    refused("too few for the encoder; give larger tiles", ValueError, method=method)
    encoder = ViTEncoder(
        width=8, depth=1, heads=2, hidden=8, patch=5, native_px=15, output=Output.mean
    )
    method = TileClassifier(encoder=encoder)
    refused(r"16 px, at --config\.mpp=2, .* of 5 px", method=method)


def test_what_weights_have_seen_is_handed_on(config, tmp_path):
    """Trained on from weights, an encoder names what they have learnt from."""
    encoder = Encoder(stages=1, width=8)
    path = tmp_path / "first.safetensors"
    origin = WeightsMetadata(encoder.describe(), ("a", "b"), ("elsewhere:1",), {})
    pretrained.save(path, jax.device_get(encoder.params()["params"]), to_header(origin))
    config.method.encoder.weights = str(path)
    method = config.method.stages(Task(KINDS), optax.identity())[0].method
    params = jax.jit(method.init)(jax.random.key(0), None).params
    first = params["encoder"]["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(first, encoder.params()["params"]["conv1"]["kernel"])
    sets = config.sets()
    pretrain_tiles.save_encoder(tmp_path / "next.safetensors", params, config, sets)
    ids = read_weights_metadata(tmp_path / "next.safetensors").training_ids
    assert set(ids) == {*sets.training_ids, "elsewhere:1"}


def test_statistics_do_not_depend_on_how_a_tile_lies():
    x = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    upright = tile_evaluation.statistics(x)
    assert upright.shape == (3, 39)
    turned = tile_evaluation.statistics(np.rot90(x, 1, (1, 2)))
    np.testing.assert_allclose(turned, upright, rtol=1e-4, atol=1e-6)
    finer = tile_evaluation.statistics(x // 2)
    assert np.abs(finer - upright).min(0).max() > 0.1


def test_clusters_are_resampled_and_not_tiles():
    """Ten tiles of a cluster are worth one: the interval is wider."""
    names, clusters = (tuple(str(i // k) for i in range(400)) for k in (1, 10))
    label, pixels = np.zeros(400, np.int32), np.zeros((400, 1, 1, 3), np.uint8)
    p = np.eye(2)[(np.arange(400) // 10 % 4 == 0).astype(int)]
    compare = lambda of, p, q: tile_evaluation.compare(
        Tiles(pixels, label, of, names), p, q, 0
    )
    length = lambda values: values["accuracy_hi"] - values["accuracy_lo"]
    wide, narrow = compare(clusters, p, p), compare(names, p, p)
    assert length(wide) > 2.5 * length(narrow)
    assert wide["difference"] == wide["difference_lo"] == wide["difference_hi"] == 0
    sure = compare(clusters, np.eye(2)[label], p)
    assert sure["accuracy"] == 1 == pytest.approx(sure["accuracy_hi"])
    assert 0.8 < sure["accuracy_lo"] < 0.95  # forty clusters: Wilson's 0.912
