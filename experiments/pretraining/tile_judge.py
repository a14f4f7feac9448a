"""How an encoder is chosen while it learns, and what it says of test tiles then."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.pretraining.linear_probe import probe
from experiments.pretraining.tile_sets import Tiles, TileSets, evaluation_tiles
from wsi_jax.nets.trunk import Trunk
from wsi_jax.ops import class_prior
from wsi_jax.run.train import validation_metrics
from wsi_jax.training.compile import compile_each, split
from wsi_jax.types import Method, Stage


class Judge(NamedTuple):
    """Of one encoder.

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
) -> Judge:
    """By the method's classifier; or, where it has none, its measure and a probe.

    Args:
        stage: whose own measure says that it tells no classes.
        method: the stage's, compiled.
        trunk: of the encoder, whose parameters are called so.
        sets: the tiles.
        mesh: of the devices.
        batch: tiles at once.
        log_prior: of each class, added to the classifier's logits; () for none.
    """
    if stage.validate:
        measure = compile_each(stage.validate, mesh)
        return Judge(
            lambda params: means(measure, params, sets.val, mesh, batch),
            lambda params: probe(trunk, params["encoder"], sets, mesh, batch),
        )
    say = lambda params, tiles: probabilities(
        method, params, tiles, mesh, batch, log_prior
    )
    return Judge(
        lambda params: validation_metrics(
            sets.val.label, say(params, sets.val), log_prior
        ),
        lambda params: say(params, sets.test),
    )


def probabilities(
    method, params, tiles: Tiles, mesh, batch: int, log_prior: Sequence[float] = ()
) -> np.ndarray:
    """Of each class for each tile [n c]."""
    key, found = jax.random.key(0), []
    for bag in evaluation_tiles(tiles, batch_size=batch):
        said = method.predict(params, split(bag, mesh), key)
        found.append(class_prior.probabilities(np.asarray(said.logits), log_prior))
    return np.concatenate(found)[: len(tiles.label)]


def means(measure, params, tiles: Tiles, mesh, batch: int) -> dict[str, float]:
    """Over the tiles, of what a method measures of each."""
    found = []
    for i, bag in enumerate(evaluation_tiles(tiles, batch_size=batch)):
        key = jax.random.key(i)
        found.append(jax.device_get(measure(params, split(bag, mesh), key)))
    every = lambda name: np.concatenate([one[name] for one in found])
    return {name: float(every(name)[: len(tiles.label)].mean()) for name in found[0]}
