"""Presets of practice slides: at which scale a lesion differs from normal tissue."""

import dataclasses
import enum
from collections.abc import Callable

import numpy as np


class Preset(enum.Enum):
    """Practice cohorts, by where their signal is."""

    PLAIN = "plain"  # visible at every scale: smoke and demo, never evidence
    FINE_ONLY = "fine_only"  # below k px only
    COARSE_ONLY = "coarse_only"  # whether neighbouring blocks match
    MID = "mid"  # between 4 and 16 px only
    NEEDLE = "needle"  # fine, and an overview shows as many suspects in either class
    SPARSE = "sparse"  # needle, lesions as small as CAMELYON16's
    DIFFUSE = "diffuse"  # fine, 20 to 60 % of the tissue
    THREE = "three"  # fine, three classes
    NULL = "null"  # nowhere
    SHIFT = "shift"  # fine, and the site tells the label in training only


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """What is true of every slide of a preset, whatever its label.

    Attributes:
        foci: (rng, tissue area um2) -> (areas of all foci in um2, how many of them are
            lesions on a slide that has any; the others are shams of normal texture).
        edges_px: box sides that part the bands of the composite, the coarsest first.
        layer: the band that differs in a lesion; 0 is the coarsest.
        suspects: every focus, lesion or mimic, has some tumour in its coarsest band.
        dominoes: the tissue is pairs of blocks, and the label is whether they match.
        n_classes: number of classes.
        lesions: False where lesions are made of normal texture.
        biased_site: the site tells the label, except on test slides.
        in_band: scales, in pixels of the tiles, at which fields of lesions and shams
            differ.
        off_band: scales at which they must not. Of others nothing is expected.
    """

    foci: Callable[[np.random.Generator, float], tuple[list[float], int]]
    edges_px: tuple[int, ...]
    layer: int = 1
    suspects: bool = False
    dominoes: bool = False
    n_classes: int = 2
    lesions: bool = True
    biased_site: bool = False
    in_band: tuple[int, ...] = (1, 2, 4)
    off_band: tuple[int, ...] = (8, 16, 32)


def shares(low: float, high: float) -> Callable:
    """Foci: one to three, together a uniform share of the tissue, all lesions."""

    def foci(rng, tissue_um2):
        share = rng.uniform(low, high)
        parts = rng.dirichlet([4.0] * rng.integers(1, 4))
        return list(share * tissue_um2 * parts), len(parts)

    return foci


def cell_sized(rng, tissue_um2):
    """Foci: six to ten of about 150 um, one to three of them lesions."""
    n, lesions = rng.integers(6, 11), rng.integers(1, 4)
    return list(rng.uniform(130, 190, n) ** 2 * np.pi / 4), lesions


def micrometastases(rng, tissue_um2):
    """Foci: as `cell_sized`; lesions as small as on CAMELYON16's tumour slides.

    Of those, 27 % have lesions on less than 0.1 % of their tissue, 68 % on less
    than 3 %. Mimics are drawn by the same law.
    """
    n, lesions = rng.integers(6, 11), rng.integers(1, 4)
    edges = np.log10([1e-4, 1e-3, 3e-2, 3e-1])
    u = rng.random()
    part = int(np.searchsorted([0.27, 0.68], u, side="right"))
    share = 10 ** rng.uniform(edges[part], edges[part + 1])
    # All foci at most half of the tissue, or there is no room for the mimics.
    each = min(share / lesions, 0.5 / n) * tissue_um2
    return [each * f for f in rng.uniform(0.7, 1.3, n)], lesions


def nowhere(rng, tissue_um2):
    """Foci: none."""
    return [], 0


SCALES = (1, 2, 4, 8, 16, 32)
FINE = {"foci": shares(0.08, 0.25), "edges_px": (8,)}
LAWS = {
    Preset.PLAIN: Law(
        foci=shares(0.06, 0.25),
        edges_px=(),
        layer=0,
        in_band=(1, 2, 4, 8, 16),
        off_band=(),
    ),
    Preset.FINE_ONLY: Law(**FINE),
    Preset.COARSE_ONLY: Law(
        foci=nowhere,
        edges_px=(8,),
        layer=0,
        dominoes=True,
        in_band=(),
        off_band=(1, 2, 4),
    ),
    Preset.MID: Law(foci=shares(0.08, 0.25), edges_px=(16, 4), off_band=(16, 32)),
    Preset.NEEDLE: Law(foci=cell_sized, edges_px=(8,), suspects=True),
    Preset.SPARSE: Law(foci=micrometastases, edges_px=(8,), suspects=True),
    Preset.DIFFUSE: Law(foci=shares(0.2, 0.6), edges_px=(8,)),
    Preset.THREE: Law(**FINE, n_classes=3),
    Preset.NULL: Law(**FINE, lesions=False, in_band=(), off_band=SCALES),
    Preset.SHIFT: Law(**FINE, biased_site=True),
}


def practice_limits(practice) -> tuple[str, ...]:
    """What a report says of slides that were made, not scanned.

    Args:
        practice: their config (`MakeCohort` or `MakeBach`); None for real slides.
    """
    if practice is None:
        return ()
    made = "put together from real tiles" if practice.tiles else "drawn"
    return (f"The slides are {made}, not scanned. {_lesson(practice.preset)}",)


def _lesson(preset: Preset) -> str:
    """What a run on practice slides can show."""
    if preset is Preset.PLAIN:
        return (
            "Their lesions are plain to see: this run shows that the parts work "
            "together and is no evidence of more."
        )
    return (
        f"Preset {preset.value} decides at which scale a lesion differs, and "
        "experiments.phantoms.certify tests it: what is learnt here is whether a "
        "method finds a signal of that scale, not how well it does on patients."
    )
