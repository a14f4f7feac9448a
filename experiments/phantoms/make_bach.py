"""Makes a synthetic cohort in BACH's layout: flat fields of four classes.

    python -m experiments.phantoms.make_bach \
        --config experiments/configs/practice.py:bach \
        --config.tiles=LC25000 --config.out=cohorts/bach

A field is a mosaic of normal tiles, real ones or, without `--config.tiles`, drawn ones,
with two regions, of one law in every class: of normal tiles again, or of a kind of tile
for each class. Of three kinds, as textures have, the last class has a region of either
tumour. Every cluster of tiles belongs to one patient, and every patient has fields of
all classes, so folds by patient share no tile. Kinds of LC25000 differ in colour: the
task is easy and proves nothing. Run again, it goes on where it stopped.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import UInt8

from experiments.phantoms import synthetic_masks
from experiments.phantoms.cohort_folder import TileMaker, command, write_image
from experiments.phantoms.presets import Preset
from experiments.phantoms.texture_sources import (
    SourceError,
    Textures,
    Tiles,
    TileSource,
    mosaic,
)
from wsi_jax.commands.config_command_line import launch
from wsi_jax.config_fields import COUNT, POSITIVE, SEED, FieldError
from wsi_jax.data.bach import CLASSES, MPP, TRUTH
from wsi_jax.files import write_text
from wsi_jax.run.run_folder import write_csv, write_json
from wsi_jax.slides.pyramid_writer import rescale

PATIENTS = "patients.csv"
PREFIXES = ("n", "b", "is", "iv")
# What fills the two regions, by number of kinds and then class: indices of kinds.
REGIONS = {3: ((0, 0), (2, 2), (1, 1), (1, 2)), 4: tuple((c, c) for c in range(4))}
CELL_PX, PALETTE, TRIES = 8, 16, 100


@dataclasses.dataclass(kw_only=True)
class MakeBach(TileMaker):
    """A synthetic cohort of fields on disk; `kinds` are those of its four classes.

    Attributes:
        patients: number of patients, who share the clusters of tiles.
        per_class: fields of each class.
        height: height of a field, in pixels.
        width: width of a field, in pixels.
        share: share of a field that its two regions cover, least and most.
        stain: spread of the log gain of each stain over fields.
        seed: seed of the cohort; a field depends on it and its own number only.
    """

    kinds: tuple[str, ...] = ("colon_n", "colon_aca", "lung_n", "lung_scc")
    patients: int = 10
    per_class: int = 100
    height: int = 1536
    width: int = 2048
    share: tuple[float, float] = (0.15, 0.6)
    stain: float = 0.08
    seed: int = 0

    @property
    def preset(self) -> Preset:
        """For reports: lesions here are plain to see."""
        return Preset.PLAIN

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **{"seed": SEED, "mpp": (POSITIVE, math.inf)},
        **dict.fromkeys(("height", "width"), (64, math.inf)),
        **dict.fromkeys(("styles", "patients", "per_class"), COUNT),
    }

    def validate(self) -> None:
        """Refuses numbers that no field can be drawn with."""
        if not 0 < self.share[0] <= self.share[1] <= 0.8:
            raise FieldError("share", "least and most, as (0.15,0.6), up to 0.8")
        if self.tiles and len(set(self.kinds)) != len(CLASSES):
            raise FieldError("kinds", f"four, for {', '.join(CLASSES)}")


class Field(NamedTuple):
    """A field to be drawn.

    Attributes:
        number: number in the cohort.
        label: index of its class.
        index: number among the fields of its class.
        patient: number of the patient whose clusters it is made of.
    """

    number: int
    label: int
    index: int
    patient: int


def plan(config: MakeBach) -> tuple[Field, ...]:
    """All fields of a cohort, class by class; every patient has some of each."""
    return tuple(
        Field(len(CLASSES) * i + label, label, i, i % config.patients)
        for label in range(len(CLASSES))
        for i in range(config.per_class)
    )


def draw_field(
    field: Field, config: MakeBach, source: TileSource, mpp: float
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

    def fill(kind):
        tiles = donate(source, kind, field.patient, config.patients, tile_rng)
        clusters.extend(tiles.clusters)
        return mosaic(tiles.pixels, shape, tile_rng, gains)

    image = fill(source.kinds[0])
    free = np.ones([-(-side // CELL_PX) for side in shape], bool)
    for kind in REGIONS[len(source.kinds)][field.label]:
        mask = synthetic_masks.focus(
            shape_rng, free, max(round(share / 2 * free.size), 1)
        )
        free &= ~mask
        inside = mask.repeat(CELL_PX, 0).repeat(CELL_PX, 1)[: shape[0], : shape[1]]
        image[inside] = fill(source.kinds[kind])[inside]
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
    """The patient whom a cluster belongs to, for ever."""
    digest = hashlib.sha256(f"patient:{cluster}".encode()).digest()
    return int.from_bytes(digest, "big") % patients


def make_bach(config: MakeBach) -> pathlib.Path:
    """Makes what is missing of a cohort.

    Returns:
        The path of its `patients.csv`: file, patient and cluster.

    Raises:
        MakeCohortError: no folder named, or one that holds another cohort.
        SourceError: tiles that cannot serve.
        OSError: the disk is full or not to be written to.
    """
    out, source = config.checked(), config.source()
    config.claim()
    fields = plan(config)
    make = lambda field: _make(field, config, source)
    config.in_parallel(make, fields, "fields")
    lines = [f"{name_of(field)}.tif,{CLASSES[field.label]}\n" for field in fields]
    write_text(out / "Photos" / TRUTH, "".join(lines))
    write_csv(out / PATIENTS, [_line(out, field) for field in fields])
    return out / PATIENTS


def name_of(field: Field) -> str:
    """As BACH names its images: n001, b001, is001, iv001."""
    return f"{PREFIXES[field.label]}{field.index + 1:03}"


def _make(field, config, source):
    """Writes one field and its truth, the field last: where it is, all is."""
    out = pathlib.Path(config.out)
    path = out / "Photos" / CLASSES[field.label] / f"{name_of(field)}.tif"
    if path.is_file():
        return
    pixels, clusters, share = draw_field(field, config, source, MPP)
    write_json(_truth(out, field), {"share": share, "clusters": clusters})
    write_image(path, pixels)


def _line(out, field):
    """A field's line of patients.csv."""
    clusters = json.loads(_truth(out, field).read_text())["clusters"]
    patient = f"patient_{field.patient + 1:02}"
    file = f"{name_of(field)}.tif"
    return {"file": file, "patient": patient, "cluster": ";".join(clusters)}


def _truth(out, field):
    return out / "truth" / f"{name_of(field)}.json"


main = command(make_bach)

if __name__ == "__main__":
    launch(main, "MakeBach")
