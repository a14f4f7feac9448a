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
    if stage.validate:
        measure = compile_each(stage.validate, mesh)
        return Evaluator(
            lambda params: means(measure, params, sets.val, mesh, batch),
            lambda params: linear_probe(trunk, params["encoder"], sets, mesh, batch),
        )
    predict = lambda params, tiles: probabilities(
        method, params, tiles, mesh, batch, log_prior
    )
    return Evaluator(
        lambda params: validation_metrics(
            sets.val.label, predict(params, sets.val), log_prior
        ),
        lambda params: predict(params, sets.test),
    )


def probabilities(
    method, params, tiles: Tiles, mesh, batch: int, log_prior: Sequence[float] = ()
) -> np.ndarray:
    """Probability of each class for each tile [n c]."""
    key, parts = jax.random.key(0), []
    for bag in evaluation_tiles(tiles, batch_size=batch):
        prediction = method.predict(params, split(bag, mesh), key)
        parts.append(
            class_prior.probabilities(np.asarray(prediction.logits), log_prior)
        )
    return np.concatenate(parts)[: len(tiles.label)]


def means(measure, params, tiles: Tiles, mesh, batch: int) -> dict[str, float]:
    """Means over the tiles of what a method measures of each."""
    parts = []
    for i, bag in enumerate(evaluation_tiles(tiles, batch_size=batch)):
        key = jax.random.key(i)
        parts.append(jax.device_get(measure(params, split(bag, mesh), key)))
    every = lambda name: np.concatenate([part[name] for part in parts])
    return {name: float(every(name)[: len(tiles.label)].mean()) for name in parts[0]}


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

    def features(tiles):
        bags = evaluation_tiles(tiles, batch_size=batch)
        parts = [jax.device_get(encode(params, split(bag.x, mesh))) for bag in bags]
        return np.concatenate(parts)[: len(tiles.label)]

    return regression(features, sets)


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
