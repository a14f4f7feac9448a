"""What a frozen encoder knows of classes, told by a linear probe of its features."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.pretraining.baseline import regression
from experiments.pretraining.tile_sets import TileSets, evaluation_tiles
from wsi_jax.config_io import TYPE, from_plain
from wsi_jax.nets.trunk import Trunk
from wsi_jax.nets.weights_metadata import read_weights_metadata
from wsi_jax.run.config import RunError
from wsi_jax.training.compile import compile_encoder, split


def probe(
    trunk: Trunk, params: Any, sets: TileSets, mesh: Mesh, batch: int
) -> np.ndarray:
    """Probabilities [n c] of the test tiles by regression on a trunk's features.

    Args:
        trunk: that is frozen.
        params: of it.
        sets: the tiles, whole and as they are.
        mesh: of the devices.
        batch: tiles at once.
    """
    encode = compile_encoder(trunk.make().apply, mesh)

    def describe(tiles):
        bags = evaluation_tiles(tiles, batch_size=batch)
        found = [jax.device_get(encode(params, split(bag.x, mesh))) for bag in bags]
        return np.concatenate(found)[: len(tiles.label)]

    return regression(describe, sets)


def trunk_of(weights: str, mpp: float, sets: TileSets) -> Trunk:
    """The trunk of an earlier pre-training, by what its weights tell of themselves.

    Args:
        weights: of that.
        mpp: um/px of the tiles.
        sets: that it is to be tested on.

    Raises:
        RunError: no such file, not of a pre-training, for another mpp, or it has learnt
            from test tiles.
    """
    flag = f"--config.beside={weights}"
    if not pathlib.Path(weights).is_file():
        raise RunError(f"{flag}: no such file")
    origin = read_weights_metadata(weights)
    made = origin.made.get("config", {}) if origin else {}
    if TYPE not in made:
        raise RunError(f"{flag}: no weights of experiments.pretraining.pretrain_tiles")
    config = from_plain(made)
    if config.mpp != mpp:
        raise RunError(
            f"{flag} is for {config.mpp:g} um/px, and tiles are seen at {mpp:g}; give "
            f"weights for these, or --config.mpp={config.mpp:g}"
        )
    known = sorted(set(origin.training_ids) & set(sets.test.cluster))
    if known:
        raise RunError(
            f"{flag} has learnt from {len(known)} clusters of test tiles, {known[0]} "
            "among them; give weights that have not"
        )
    return dataclasses.replace(config.method.encoder, weights=weights)
