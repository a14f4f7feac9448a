"""Draws synthetic slides with a known truth and a known scale of signal.

A slide is a mosaic of source tiles, cut to pieces of tissue on glass. In it lie foci,
cut and filled by one law in every class; the label decides only from which kind of
tile a focus takes the band that `presets.LAWS` names. All else about a slide comes from
random streams that the label does not reach.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from scipy import ndimage

from experiments.phantoms import artefacts, band_composite, synthetic_masks
from experiments.phantoms.artefacts import SITES, Artefacts
from experiments.phantoms.presets import LAWS, Preset
from experiments.phantoms.texture_sources import TileSource, mosaic

GLASS, TISSUE, LESION, SHAM = range(4)
# Truth is kept per block of this many pixels, which every box of a composite divides
# or holds: a region covers whole boxes only.
CELL_PX = 8
PALETTE = 32
BLOCK_UM, GUTTER_UM = 208, 144


@dataclasses.dataclass(kw_only=True)
class Practice:
    """A cohort of synthetic slides.

    Attributes:
        preset: scale at which lesions differ from normal tissue.
        seed: seed of the cohort; a slide depends on it and its own number only.
        n_train: training slides.
        n_val: validation slides.
        n_test: test slides.
        side_px: side of a slide in pixels of the source tiles, give or take a tenth.
        prevalence: share of slides that are not normal; two thirds for `three`.
        fill: share of a slide that tissue covers.
        suspect_share: share of tumour in the coarsest band of the suspects of `needle`
            and `sparse`. With LC25000's tiles 0.3 is right: the colour of one cell of
            an overview then tells a suspect with AUC .70 to .77. Drawn textures are
            more alike and want less.
        artefacts: differences between slides that do not depend on the label.
    """

    preset: Preset = Preset.PLAIN
    seed: int = 0
    n_train: int = 28
    n_val: int = 8
    n_test: int = 24
    side_px: int = 1536
    prevalence: float = 0.4
    fill: float = 0.5
    suspect_share: float = 0.12
    artefacts: Artefacts = dataclasses.field(default_factory=Artefacts)


class Planned(NamedTuple):
    """A slide to be drawn: its number, name, class, split and site."""

    number: int
    slide_id: str
    label: int
    split: str
    site: str


class Drawn(NamedTuple):
    """A slide that has been drawn.

    Attributes:
        image: pixels at the source's mpp, before it is scanned.
        truth: GLASS, TISSUE, LESION or SHAM per block of CELL_PX pixels.
        spots: (y, x, truth) in pixels of `image`, a point in each focus or pair.
        mpp: micrometres per pixel that it is to be scanned at.
        quality: JPEG quality.
        clusters: clusters of all source tiles in it.
    """

    image: UInt8[np.ndarray, "h w 3"]
    truth: UInt8[np.ndarray, "h2 w2"]
    spots: tuple[tuple[int, int, int], ...]
    mpp: float
    quality: int
    clusters: tuple[str, ...]


def labels(kinds: tuple[str, ...], preset: Preset) -> tuple[str, ...]:
    """Names of a cohort's classes: normal and tumor, or the kinds of three."""
    if LAWS[preset].n_classes == 2:
        return ("normal", "tumor")
    return ("normal", *kinds[1 : LAWS[preset].n_classes])


def plan(config: Practice, names: tuple[str, ...]) -> tuple[Planned, ...]:
    """All slides of a cohort, named as CAMELYON16 does; `names` are the classes."""
    slides, counts = [], {}
    law = LAWS[config.preset]
    sizes = {"train": config.n_train, "val": config.n_val, "test": config.n_test}
    for index, (split, n) in enumerate(sizes.items()):
        rng = np.random.default_rng([config.seed, 0, index])
        share = config.prevalence if law.n_classes == 2 else 2 / 3
        positives = round(n * share)
        label = np.zeros(n, int)
        label[:positives] = 1 + np.arange(positives) % (law.n_classes - 1)
        label = rng.permutation(label)
        for c in label:
            name = "test" if split == "test" else names[c]
            counts[name] = counts[name] + 1 if name in counts else 1
            fair = rng.integers(2)
            telling = int(c > 0) if rng.random() < 0.9 else 1 - int(c > 0)
            biased = law.biased_site and split != "test"
            site = SITES[telling if biased else fair]
            slide_id = f"{name}_{counts[name]:03}"
            slides.append(Planned(len(slides), slide_id, int(c), split, site))
    return tuple(slides)


def draw_slide(planned: Planned, config: Practice, source: TileSource) -> Drawn:
    """Draws one slide; equal arguments give equal pixels."""
    return _Canvas(planned, config, source).draw()


class _Canvas:
    def __init__(self, planned, config, source):
        self.planned, self.config, self.source = planned, config, source
        self.law = LAWS[config.preset]
        seeds = np.random.SeedSequence([config.seed, 1, planned.number]).spawn(5)
        # Streams of their own, so that no label can shift another draw.
        rngs = [np.random.default_rng(seed) for seed in seeds]
        self.shape_rng, self.tile_rng, self.focus_rng, self.site_rng, self.chance = rngs
        self.part = "test" if planned.split == "test" else "train"
        self.clusters = []
        unit = 2 * CELL_PX
        sides = config.side_px * self.shape_rng.uniform(0.9, 1.1, 2)
        self.shape = tuple(int(side) // unit * unit for side in sides)
        self.grid = tuple(side // CELL_PX for side in self.shape)
        gains = artefacts.stain_gains(self.site_rng, planned.site, config.artefacts)
        self.gains = gains

    def draw(self):
        if self.law.dominoes:
            tissue, regions, spots = self.dominoes()
        else:
            tissue, regions, spots = self.foci()
        normal = self.source.kinds[0]
        n_layers = len(self.law.edges_px) + 1
        layers = [
            self.mosaic(normal, self.tile_rng, self.shape) for _ in range(n_layers)
        ]
        image = compose(layers, self.law.edges_px)
        truth = np.where(tissue, TISSUE, GLASS).astype(np.uint8)
        for mask, kind, value in regions:
            self.fill(image, layers, mask, kind)
            truth[mask] = value
        image = self.scan(image, tissue)
        config = self.config.artefacts
        return Drawn(
            image,
            truth,
            tuple(spots),
            float(self.site_rng.choice(config.mpps)),
            int(self.site_rng.integers(config.quality[0], config.quality[1] + 1)),
            tuple(dict.fromkeys(self.clusters)),
        )

    def foci(self):
        """Tissue, its foci as (mask, kind, truth), and a spot in each."""
        pieces = int(self.shape_rng.integers(2, 6))
        tissue = synthetic_masks.tissue(
            self.shape_rng, self.grid, pieces, self.config.fill
        )
        cell_um2 = (CELL_PX * self.source.mpp) ** 2
        areas, lesions = self.law.foci(self.shape_rng, tissue.sum() * cell_um2)
        free = ndimage.binary_erosion(tissue, iterations=3)
        regions, spots = [], []
        for i, area in enumerate(areas):
            mask = synthetic_masks.focus(
                self.shape_rng, free, max(round(area / cell_um2), 1)
            )
            free &= ~ndimage.binary_dilation(mask, iterations=2)
            lesion = bool(self.planned.label) and i < lesions
            kind = self.source.kinds[self.planned.label * lesion * self.law.lesions]
            if mask.any():
                value = LESION if lesion else SHAM
                regions.append((mask, kind, value))
                spots.append((*_inmost(mask), value))
        return tissue, regions, spots

    def dominoes(self):
        """As `foci`; the regions are the blocks of the other kind, half of them all."""
        turn = bool(self.shape_rng.integers(2))
        grid = self.grid[::-1] if turn else self.grid
        cell = CELL_PX * self.source.mpp
        block, gutter = round(BLOCK_UM / cell), -(-GUTTER_UM // int(cell))
        pairs, centres = synthetic_masks.dominoes(self.shape_rng, grid, block, gutter)
        # Half of all blocks are of either kind, whatever the label.
        regions, tissue = [], np.zeros(grid, bool)
        order = self.shape_rng.permutation(len(pairs))
        sides = self.shape_rng.integers(0, 2, len(pairs))
        for rank, i in enumerate(order):
            match = self.planned.label == 1
            other = (0, 1) if match and rank % 2 else () if match else (sides[i],)
            for half, mask in enumerate(pairs[i]):
                tissue |= mask
                if half in other:
                    regions.append((mask, self.source.kinds[1], TISSUE))
        spots = [(CELL_PX * y, CELL_PX * x, TISSUE) for y, x in centres]
        if turn:
            tissue = tissue.T
            regions = [(mask.T, kind, value) for mask, kind, value in regions]
            spots = [(x, y, value) for y, x, value in spots]
        return tissue, regions, spots

    def fill(self, image, layers, mask, kind):
        """Composes a focus anew with one layer of its own, in its bounding box."""
        unit = 2 * CELL_PX  # boxes may be 16 px
        hits = (CELL_PX * np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        rows, columns = (
            slice(hit[0] // unit * unit, (hit[-1] // unit + 1) * unit) for hit in hits
        )
        own = [layer[rows, columns] for layer in layers]
        shape = own[0].shape[:2]
        own[self.law.layer] = self.mosaic(kind, self.focus_rng, shape)
        if self.law.suspects:
            tumor = self.mosaic(self.source.kinds[1], self.focus_rng, shape)
            own[0] = own[0] + self.config.suspect_share * (tumor - own[0])
        inside = mask.repeat(CELL_PX, 0).repeat(CELL_PX, 1)[rows, columns]
        focus = compose(own, self.law.edges_px)
        image[rows, columns][inside] = focus[inside]

    def mosaic(self, kind, rng, shape):
        """Tiles of a kind side by side, in this slide's stain."""
        tiles = self.source.draw(kind, self.part, PALETTE, rng)
        self.clusters.extend(tiles.clusters)
        return mosaic(tiles.pixels, shape, rng, self.gains).astype(np.float32)

    def scan(self, image, tissue):
        """Lays the tissue on glass and adds what goes wrong on the way."""
        config, rng = self.config.artefacts, self.chance
        soft = ndimage.gaussian_filter(tissue.astype(np.float32), 1.2)[..., None]
        soft = band_composite.smooth(soft, CELL_PX)
        rough = synthetic_masks.noise(rng, self.shape, 6.0) + synthetic_masks.noise(
            rng, self.shape, 20.0
        )
        alpha = np.clip((soft + 0.08 * rough[..., None] - 0.4) * 6 + 0.5, 0, 1)
        if rng.random() < config.fold:
            artefacts.fold(rng, image, alpha)
        glass = artefacts.background(rng, self.shape)
        image = glass + alpha * (image - glass)
        if rng.random() < config.pen:
            artefacts.pen(rng, image)
        artefacts.blur(rng, image, config.blur_px)
        return image.clip(0, 255).round().astype(np.uint8)


def compose(
    layers: list[Float32[np.ndarray, "h w 3"]], edges_px: tuple[int, ...]
) -> Float32[np.ndarray, "h w 3"]:
    """One image of several bands, each from a layer of its own, coarsest first.

    They are parted by box sides, of which each divides the one before.
    """
    if not edges_px:
        return layers[0].copy()
    image = band_composite.low_band(layers[0], edges_px[0])
    for i, k in enumerate(edges_px):
        band = band_composite.detail(layers[i + 1], k)
        if i + 1 < len(edges_px):
            band -= band_composite.detail(layers[i + 1], edges_px[i + 1])
        image = band_composite.join(image, band, k)
    return image


def _inmost(mask):
    """The pixel (y, x) deepest inside a mask of cells."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), mask.shape)
    return int((y + 0.5) * CELL_PX), int((x + 0.5) * CELL_PX)
