"""Labelled tiles in memory, and batches of them."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

from wsi_jax.data.csv_table import CohortError
from wsi_jax.data.order import slides_of_batch
from wsi_jax.types import Bag


class Tiles(NamedTuple):
    """Tiles of one size, each with its label.

    Attributes:
        pixels: grey levels.
        label: index of each tile's class.
        cluster: name of each tile's origin; tiles of one cluster are not independent.
        name: name of each tile.
    """

    pixels: UInt8[np.ndarray, "n s s 3"]
    label: Int32[np.ndarray, " n"]
    cluster: tuple[str, ...]
    name: tuple[str, ...]


class TileSets(NamedTuple):
    """Tiles to train on, to choose by and to test on; no cluster is in two of them.

    Attributes:
        train, val, test: the tiles.
        classes: their names; labels are indices into it.
        training_ids: what an encoder learns from or is chosen on, by cluster or slide.
    """

    train: Tiles
    val: Tiles
    test: Tiles
    classes: tuple[str, ...]
    training_ids: tuple[str, ...]


def training_tiles(
    tiles: Tiles,
    weights: Float32[np.ndarray, " n"] | None,
    *,
    seed: int,
    batch_size: int,
    balanced: bool,
    start: int,
) -> Iterator[Bag]:
    """Batches without end, each tile a bag of one; batch i depends on seed and i alone.

    Args:
        tiles: the tiles to draw from.
        weights: weight of each tile in the loss; None for all alike.
        seed: seed of the order.
        batch_size: tiles per batch.
        balanced: whether classes take turns, rather than tiles.
        start: step to resume at.
    """
    for step in itertools.count(start):
        index = slides_of_batch(seed, step, tiles.label, batch_size, balanced)
        bag = _bag(tiles, index)
        yield bag if weights is None else bag._replace(weight=weights[index])


def evaluation_tiles(tiles: Tiles, *, batch_size: int) -> Iterator[Bag]:
    """Every tile once and in order; the last batch is filled with weight 0."""
    for first in range(0, len(tiles.label), batch_size):
        index = np.arange(first, first + batch_size)
        yield _bag(tiles, np.where(index < len(tiles.label), index, -1))


def _bag(tiles: Tiles, index: Int[np.ndarray, " b"]) -> Bag:
    real = index >= 0
    return Bag(
        x=tiles.pixels[index],
        mask=real[:, None],
        target=np.where(real, tiles.label[index], 0).astype(np.int32),
        weight=real.astype(np.float32),
    )


def check_mpp(what: str, own: float, mpp: float) -> None:
    """Refuses tiles that are to be seen at a finer um/px than their own.

    Raises:
        CohortError: naming `what` they are, and the flag.
    """
    if mpp < own:
        raise CohortError(
            f"{what} {own:g} um/px hold no detail of {mpp:g}; raise --config.mpp to "
            f"{own:g} or more"
        )
