"""How an encoder of tiles is validated while it learns, and tested afterwards."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.pretraining.tile_metrics import regression
from experiments.pretraining.tile_sets import Tiles, TileSets, evaluation_tiles
from wsi_jax.config_fields import from_plain
from wsi_jax.nets.trunk import Trunk
from wsi_jax.nets.weights_metadata import read_weights_metadata
from wsi_jax.ops import class_prior
from wsi_jax.run.cohort_predictions import validation_metrics
from wsi_jax.run.run_folder import RunError
from wsi_jax.training.compile import compile_each, compile_encoder, split
from wsi_jax.types import Method, Stage


class Evaluator(NamedTuple):
    """Validation and test of one encoder.

    Attributes:
        validate: params -> metrics of the validation tiles.
        test: params -> probabilities [n c] of the test tiles.
    """

    validate: Callable[[Any], dict[str, float]]
    test: Callable[[Any], np.ndarray]


def evaluator_for(
    stage: Stage,
    method: Method,
    trunk: Trunk,
    sets: TileSets,
    mesh: Mesh,
    batch: int,
    log_prior: Sequence[float],
) -> Evaluator:
    """By the method's classifier; where it has none, by its own loss and a probe.

    Args:
        stage: the method's; its `validate` is set where it predicts no classes.
        method: the stage's, compiled.
        trunk: the encoder.
        sets: the tiles.
        mesh: the devices.
        batch: tiles at once.
        log_prior: number for each class, added to its logits; () for none.
    """
    each = lambda measure, tiles: each_tile(measure, tiles, mesh, batch)
    if stage.validate:
        measure = compile_each(stage.validate, mesh)

        def validate(params):
            metrics = each(lambda bag, key: measure(params, bag, key), sets.val)
            return {name: float(values.mean()) for name, values in metrics.items()}

        test = lambda params: linear_probe(trunk, params["encoder"], sets, mesh, batch)
        return Evaluator(validate, test)

    def predict(params, tiles):
        logits = each(lambda bag, key: method.predict(params, bag, key).logits, tiles)
        return class_prior.probabilities(logits, log_prior)

    def validate(params):
        p = predict(params, sets.val)
        return validation_metrics(sets.val.label, p, log_prior)

    return Evaluator(validate, lambda params: predict(params, sets.test))


def each_tile(measure: Callable, tiles: Tiles, mesh: Mesh, batch: int) -> Any:
    """What `measure(bag, key)` gives for each tile: a tree of arrays [n ...]."""
    bags = enumerate(evaluation_tiles(tiles, batch_size=batch))
    parts = [
        jax.device_get(measure(split(bag, mesh), jax.random.key(i))) for i, bag in bags
    ]
    whole = lambda *arrays: np.concatenate(arrays)[: len(tiles.label)]
    return jax.tree.map(whole, *parts)


def linear_probe(
    trunk: Trunk, params: Any, sets: TileSets, mesh: Mesh, batch: int
) -> np.ndarray:
    """Probabilities [n c] of the test tiles by regression on a frozen trunk's features.

    Args:
        trunk: the encoder.
        params: its parameters.
        sets: the tiles, whole and as they are.
        mesh: the devices.
        batch: tiles at once.
    """
    encode = compile_encoder(trunk.make().apply, mesh)
    features = lambda bag, key: encode(params, bag.x)
    return regression(lambda tiles: each_tile(features, tiles, mesh, batch), sets)


def earlier_encoder(weights: str, mpp: float, sets: TileSets) -> Trunk:
    """The encoder of an earlier pre-training, as the header of its weights names it.

    Args:
        weights: the file.
        mpp: um/px of the tiles.
        sets: the tiles that it is to be tested on.

    Raises:
        RunError: no such file, not of a pre-training, for another mpp, or it has learnt
            from test tiles.
    """
    flag = f"--config.beside={weights}"
    if not pathlib.Path(weights).is_file():
        raise RunError(f"{flag}: no such file")
    metadata = read_weights_metadata(weights)
    config = metadata.made.get("config", {}) if metadata else {}
    if "method" not in config:
        raise RunError(f"{flag}: no weights of experiments.pretraining.pretrain_tiles")
    if config["mpp"] != mpp:
        raise RunError(
            f"{flag} is for {config['mpp']:g} um/px, and tiles are seen at {mpp:g}; "
            f"give weights for these, or --config.mpp={config['mpp']:g}"
        )
    shared = sorted(set(metadata.training_ids) & set(sets.test.cluster))
    if shared:
        raise RunError(
            f"{flag} has learnt from {len(shared)} clusters of test tiles, {shared[0]} "
            "among them; give weights that have not"
        )
    encoder = from_plain(config["method"]["encoder"])
    return dataclasses.replace(encoder, weights=weights)
