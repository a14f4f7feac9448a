"""An encoder trained without labels, probed beside one trained with them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from labelled_tiles import KINDS, small
from safetensors.numpy import load_file

from experiments.pretraining import pretrain_tiles, tile_evaluation
from experiments.pretraining.augment import Augment
from experiments.pretraining.sim_clr import SimCLR
from wsi_jax.nets import pretrained
from wsi_jax.nets.weights_metadata import (
    WeightsMetadata,
    read_weights_metadata,
    to_header,
)
from wsi_jax.run.run_folder import RunError, read_csv
from wsi_jax.training.log import read_metrics

WHOLE = Augment(crop=1.0)


def without_labels(tiles, beside=""):
    config = small(tiles)
    method = SimCLR(encoder=config.method.encoder, augment=WHOLE, projection=8)
    return dataclasses.replace(config, method=method, beside=str(beside))


@pytest.fixture(scope="module")
def alike(tiles, trained, tmp_path_factory):
    """The folder of a finished run, beside the encoder trained with labels."""
    folder = tmp_path_factory.mktemp("alike")
    config = without_labels(tiles, trained / "encoder.safetensors")
    pretrain_tiles.run(config, folder)
    return folder


def probed(path, config):
    """Probabilities by a regression on the features that the file gives."""
    encoder = dataclasses.replace(config.method.encoder, weights=str(path))
    apply, params = jax.jit(encoder.make().apply), encoder.params()
    features = lambda tiles: np.asarray(apply(params, tiles.pixels))
    return tile_evaluation.regression(features, config.sets())


def test_weights_are_as_of_any_encoder_but_for_the_classifier(alike, trained):
    mine, other = (f / "encoder.safetensors" for f in (alike, trained))
    origin, labelled = map(read_weights_metadata, (mine, other))
    assert origin == labelled._replace(classes=(), made=origin.made)
    assert load_file(other).keys() - load_file(mine).keys() == {"fc.weight", "fc.bias"}
    assert load_file(mine).keys() < load_file(other).keys()


def test_both_probes_are_reported_on_test_clusters(alike, trained, tiles):
    """And the predictions are those of a probe of the features that the file gives."""
    config = without_labels(tiles)
    sets, metrics = config.sets(), json.loads((alike / "metrics.json").read_text())
    probes = [probed(f / "encoder.safetensors", config) for f in (alike, trained)]
    lines = read_csv(alike / "predictions.csv")
    assert [line["file"] for line in lines] == list(sets.test.name)
    written = [[float(line[f"p_{name}"]) for name in sets.classes] for line in lines]
    np.testing.assert_allclose(probes[0], written, atol=1e-3)
    for group, kinds in (("x", KINDS[:2]), ("y", KINDS[2:])):
        index = np.array([sets.classes.index(kind) for kind in kinds])
        mine = np.isin(sets.test.label, index)
        of = lambda name, group=group: metrics[f"test.{group}.{name}"]
        for name, p in zip(("accuracy", "beside_accuracy"), probes, strict=True):
            right = index[p[mine][:, index].argmax(1)] == sets.test.label[mine]
            assert of(name) == pytest.approx(right.mean())
        between = of("accuracy") - of("beside_accuracy")
        assert of("beside_difference") == pytest.approx(between)
        for name in ("accuracy", "beside_accuracy", "beside_difference"):
            assert of(f"{name}_lo") <= of(name) <= of(f"{name}_hi")
    assert pretrain_tiles.text(metrics).count("the encoder beside") == 2


def test_it_is_chosen_by_its_own_loss_on_validation_clusters(alike):
    lines = read_metrics(alike / "train" / "metrics.jsonl")
    losses = [line["val.loss"] for line in lines if "val.loss" in line]
    assert len(losses) == 3
    assert not any("val.log_loss" in line for line in lines)


def test_an_encoder_beside_that_cannot_be_is_refused(tiles, trained, tmp_path):
    def refused(match, path, **change):
        config = dataclasses.replace(without_labels(tiles, path), **change)
        with pytest.raises(RunError, match=match):
            pretrain_tiles.run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused("gone: no such file", "gone")
    good = trained / "encoder.safetensors"
    refused(r"for 2 um/px, and tiles are seen at 1", good, mpp=1.0)
    config, origin = small(tiles), read_weights_metadata(good)
    net = jax.device_get(config.method.encoder.params()["params"])

    def saying(origin):
        pretrained.save(tmp_path / "other", net, to_header(origin))
        return tmp_path / "other"

    # As `experiments.pretraining.export_encoder` leaves it.
    plain = WeightsMetadata(origin.encoder, (), (), {"config": {"mpp": 2.0}})
    refused("no weights of experiments", saying(plain))
    tested = config.sets().test.cluster[0]
    refused(
        f"1 clusters of test .*{tested}",
        saying(origin._replace(training_ids=(tested,))),
    )
