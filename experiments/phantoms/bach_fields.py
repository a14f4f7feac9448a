"""Draws synthetic fields: normal tissue with two regions that the class decides.

A field is a mosaic of normal tiles. In every class two regions, of one law, are filled
anew: with normal tiles again, or with a kind of tile for each class. Of three kinds, as
textures have, the last class has a region of either tumour. Every cluster of tiles
belongs to one patient.
"""

import dataclasses
import hashlib
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from experiments.phantoms import artefacts, synthetic_masks
from experiments.phantoms.texture_sources import (
    SourceError,
    Textures,
    Tiles,
    TileSource,
)
from wsi_jax.slides.pyramid import rescale

# What fills the two regions, by number of kinds and then class: indices of kinds.
REGIONS = {3: ((0, 0), (2, 2), (1, 1), (1, 2)), 4: tuple((c, c) for c in range(4))}
N_CLASSES = 4
CELL_PX, PALETTE, TRIES = 8, 16, 100


@dataclasses.dataclass(kw_only=True)
class Fields:
    """A cohort of synthetic fields.

    Attributes:
        patients: that share the clusters of tiles out among them.
        per_class: fields of each class.
        height: of a field, in pixels.
        width: as `height`.
        share: of a field that its two regions cover, least and most.
        stain: spread of the log gain of each stain over fields.
        seed: of the whole cohort; a field depends on it and its own number only.
    """

    patients: int = 10
    per_class: int = 100
    height: int = 1536
    width: int = 2048
    share: tuple[float, float] = (0.15, 0.6)
    stain: float = 0.08
    seed: int = 0


class Field(NamedTuple):
    """A field to be.

    Attributes:
        number: in the cohort.
        label: its class.
        index: among the fields of its class.
        patient: whose clusters it is made of.
    """

    number: int
    label: int
    index: int
    patient: int


def plan(config: Fields) -> tuple[Field, ...]:
    """All fields of a cohort, class by class; every patient has some of each."""
    return tuple(
        Field(N_CLASSES * i + label, label, i, i % config.patients)
        for label in range(N_CLASSES)
        for i in range(config.per_class)
    )


def draw_field(
    field: Field, config: Fields, source: TileSource, mpp: float
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[str, ...], float]:
    """A field's pixels at `mpp`, the clusters in it, the share that its regions cover.

    Equal arguments give equal pixels.
    """
    seeds = np.random.SeedSequence([config.seed, field.number]).spawn(2)
    # Outlines have a stream of their own: what fills them cannot shift another.
    shape_rng, tile_rng = (np.random.default_rng(seed) for seed in seeds)
    shape = tuple(
        math.ceil(side * mpp / source.mpp) + 1 for side in (config.height, config.width)
    )
    share = float(shape_rng.uniform(*config.share))
    gains = np.exp(config.stain * shape_rng.normal(size=3)).astype(np.float32)
    clusters = []

    def mosaic(kind):
        tiles = donate(source, kind, field.patient, config.patients, tile_rng)
        clusters.extend(tiles.clusters)
        return lay(artefacts.restain(tiles.pixels, gains), shape, tile_rng)

    image = mosaic(source.kinds[0])
    free = np.ones([-(-side // CELL_PX) for side in shape], bool)
    for kind in REGIONS[len(source.kinds)][field.label]:
        mask = synthetic_masks.focus(
            shape_rng, free, max(round(share / 2 * free.size), 1)
        )
        free &= ~mask
        inside = mask.repeat(CELL_PX, 0).repeat(CELL_PX, 1)[: shape[0], : shape[1]]
        image[inside] = mosaic(source.kinds[kind])[inside]
    pixels = rescale(image, source.mpp, mpp)[: config.height, : config.width]
    return pixels, tuple(dict.fromkeys(clusters)), share


def donate(
    source: TileSource,
    kind: str,
    patient: int,
    patients: int,
    rng: np.random.Generator,
) -> Tiles:
    """Tiles of a kind from the clusters of one patient.

    Clusters of the part "encoder" are no one's (`clusters.split_of`). Textures give one
    style, whose tiles fit side by side.

    Raises:
        SourceError: the patient has no cluster of that kind.
    """
    n, each = (1, PALETTE) if isinstance(source, Textures) else (PALETTE, 1)
    draws = []
    for _ in range(TRIES * patients * n):
        tiles = source.draw(kind, str(rng.choice(("train", "test"))), each, rng)
        if owner(tiles.clusters[0], patients) == patient:
            draws.append(tiles)
        if len(draws) == n:
            pixels = np.concatenate([tiles.pixels for tiles in draws])
            return Tiles(pixels, tuple(dict.fromkeys(t.clusters[0] for t in draws)))
    raise SourceError(
        f"no cluster of {kind!r} falls to patient {patient + 1} of {patients}; lower "
        "--config.patients, or add tiles (--config.styles)"
    )


def owner(cluster: str, patients: int) -> int:
    """Whose a cluster is, for ever."""
    digest = hashlib.sha256(f"patient:{cluster}".encode()).digest()
    return int.from_bytes(digest, "big") % patients


def lay(
    tiles: UInt8[np.ndarray, "n s s 3"],
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "h w 3"]:
    """Tiles side by side, drawn at random, from a random origin."""
    side = tiles.shape[1]
    down, across = (-(-length // side) + 1 for length in shape)
    chosen = tiles[rng.integers(len(tiles), size=(down, across))]
    whole = chosen.swapaxes(1, 2).reshape(down * side, across * side, 3)
    y, x = rng.integers(0, side, 2)
    return whole[y : y + shape[0], x : x + shape[1]].copy()
