"""Describes practice slides by numbers, at every resolution, for `certify`.

Fields of one physical size are described at every resolution by the same measures, the
energy of every octave that the resolution has among them.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage

from experiments.phantoms.presets import SCALES
from experiments.phantoms.synthetic import CELL_PX, GLASS, LESION, SHAM, TISSUE
from wsi_jax.data.cohort import Row
from wsi_jax.slides.slide import Slide, open_slide

NEIGHBOUR_SCALE = 8  # in pixels of the source's tiles, the side of a composite's box
IN_FOCUS, ON_TISSUE = 0.75, 0.6
FOCUS_FIELDS, TISSUE_FIELDS = 10, 48
FIELD_UM = 112.0
QUANTILES = (0.05, 0.25, 0.75, 0.95)
# Haematoxylin against eosin against the rest, from optical density.
STAINS = np.linalg.inv(
    np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
).astype(np.float32)


class CertifyError(ValueError):
    """A cohort that cannot be certified; the message names the file and the mend."""


class Description(NamedTuple):
    """One slide in numbers, by scale where there are several.

    Attributes:
        focus: descriptions [n d] of fields in its foci.
        tissue: those of fields anywhere on its tissue.
        clean: whether each of the tissue's fields touches no focus.
        neighbours: differences between neighbouring pieces of tissue.
        metadata: file size, resolution, area and colour.
    """

    focus: dict[int, Float[np.ndarray, "n d"]]
    tissue: dict[int, Float[np.ndarray, "n d"]]
    clean: Bool[np.ndarray, " n"]
    neighbours: Float[np.ndarray, "3"]
    metadata: Float[np.ndarray, " d"]


def describe_slide(row: Row, source_mpp: float, dominoes: bool) -> Description:
    """Describes a slide, made of tiles at `source_mpp`, at every scale.

    Slides of `dominoes` have pairs of blocks for foci.

    Raises:
        CertifyError: its mask cannot be read.
    """
    truth = _read_mask(row)
    cell_um = CELL_PX * source_mpp
    rng = np.random.default_rng(sum(row.slide_id.encode()))
    focus = truth == (LESION if (truth == LESION).any() else SHAM)
    focus = focus if not dominoes else truth == TISSUE
    in_focus = _corners(rng, focus, cell_um, IN_FOCUS, FOCUS_FIELDS, grid=False)
    on_tissue = _corners(
        rng, truth != GLASS, cell_um, ON_TISSUE, TISSUE_FIELDS, grid=True
    )
    near = ndimage.binary_dilation((truth == LESION) | (truth == SHAM), iterations=2)
    clean = [not _window(near, corner, cell_um).any() for corner in on_tissue]
    foci, tissue = {}, {}
    with open_slide(row.path) as slide:
        for scale in SCALES:
            mpp = scale * source_mpp
            image = slide.overview(mpp)
            for parts, corners in ((foci, in_focus), (tissue, on_tissue)):
                parts[scale] = describe_fields(cut_fields(image, mpp, corners))
            if scale == NEIGHBOUR_SCALE:
                neighbours = np.array(neighbour_differences(image, mpp))
                metadata = _metadata(row, slide, image)
    return Description(foci, tissue, np.array(clean, bool), neighbours, metadata)


def describe_fields(fields: UInt8[np.ndarray, "n s s 3"]) -> Float[np.ndarray, "n d"]:
    """Colour, spread and the energy of each octave of each field, per stain."""
    if not len(fields):
        return describe_fields(np.zeros((1, *fields.shape[1:]), np.uint8))[:0]
    density = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
    stains = density[fields] @ STAINS
    axes = (1, 2)
    parts = [stains.mean(axes), np.log(stains.std(axes) + 1e-3)]
    parts += list(np.quantile(stains, QUANTILES, axis=axes))
    for axis in (1, 2):
        for order in (1, 2):
            step = np.abs(np.diff(stains, order, axis)).mean(axes)
            parts.append(np.log(step + 1e-3))
    cross = np.diff(np.diff(stains, axis=1), axis=2)
    parts.append(np.log(np.abs(cross).mean(axes) + 1e-3))
    while stains.shape[1] >= 4:
        half = stains.shape[1] // 2
        boxes = stains[:, : 2 * half, : 2 * half]
        boxes = boxes.reshape(-1, half, 2, half, 2, 3)
        stains = boxes.mean((2, 4))
        band = boxes - stains[:, :, None, :, None]
        axes = (1, 2, 3, 4)
        energy = np.abs(band).mean(axes) + 1e-3
        peaks = (band**2).mean(axes) / energy**2
        skew = (band**3).mean(axes) / energy**3
        parts += [np.log(energy), peaks, skew]
    return np.concatenate(parts, axis=1)


def cut_fields(
    overview: UInt8[np.ndarray, "h w 3"], mpp: float, corners_um: Sequence
) -> UInt8[np.ndarray, "n s s 3"]:
    """Fields of FIELD_UM cut from a slide at `mpp`, by their corners (y, x), um."""
    side = max(round(FIELD_UM / mpp), 1)
    parts = []
    for corner in corners_um:
        y, x = (
            int(np.clip(round(at / mpp), 0, limit - side))
            for at, limit in zip(corner, overview.shape, strict=False)
        )
        parts.append(overview[y : y + side, x : x + side])
    return np.stack(parts) if parts else np.zeros((0, side, side, 3), np.uint8)


def pool_fields(described: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d3"]:
    """One description of a slide from those of its fields, in any order."""
    high = np.quantile(described, 0.95, axis=0)
    return np.concatenate([described.mean(0), described.std(0), high])


def neighbour_differences(
    overview: UInt8[np.ndarray, "h w 3"], mpp: float
) -> list[float]:
    """Differences in colour between each piece of tissue and the piece nearest to it.

    Mean, least and largest, relative to the spread over all pieces.
    """
    saturation = overview.max(-1).astype(int) - overview.min(-1)
    mask = ndimage.binary_opening(saturation > 25, iterations=1)
    marks, n = ndimage.label(ndimage.binary_fill_holes(mask))
    index = np.arange(1, n + 1)
    area_um2 = ndimage.sum_labels(mask, marks, index) * mpp**2
    index = index[area_um2 > 100**2]
    if len(index) < 3:
        return [0.0, 0.0, 0.0]
    density = -np.log((overview.astype(np.float32) + 1) / 256) @ STAINS
    colour = np.stack([ndimage.mean(density[..., c], marks, index) for c in (0, 1)], -1)
    centre = np.array(ndimage.center_of_mass(mask, marks, index))
    far = np.linalg.norm(centre[:, None] - centre[None], axis=-1)
    np.fill_diagonal(far, np.inf)
    unlike = np.linalg.norm(colour - colour[far.argmin(1)], axis=-1)
    unlike = unlike / (np.linalg.norm(colour.std(0)) + 1e-3)
    return [float(unlike.mean()), float(unlike.min()), float(unlike.max())]


def _read_mask(row):
    try:
        with Image.open(row.mask_path) as image:
            return np.asarray(image)
    except Exception as error:  # decoders raise whatever they like on junk
        raise CertifyError(
            f"{row.mask_path}: cannot be read ({error}); delete {row.path} and run "
            "experiments.phantoms.make_cohort again, which draws both anew"
        ) from error


def _metadata(row: Row, slide: Slide, overview):
    """What could give a label away without any lesion: bytes, sizes, tissue, colour."""
    tissue = overview.max(-1).astype(int) - overview.min(-1) > 20
    colour = overview[tissue].mean(0) if tissue.any() else np.zeros(3)
    size = os.path.getsize(row.path)
    area = tissue.sum() + 1
    facts = [np.log(size), np.log(size / area), slide.mpp, *slide.shape, area]
    return np.array([*facts, *colour, tissue.mean()])


def _corners(rng, mask, cell_um, least, most, *, grid):
    """Corners (y, x), um, of at most so many fields that a mask covers well enough."""
    side = round(FIELD_UM / cell_um)
    cover = ndimage.uniform_filter(mask.astype(np.float32), side, mode="constant")
    middle = cover >= least
    if grid:  # fields side by side, from a random origin
        chosen = np.zeros_like(middle)
        y, x = rng.integers(0, side, 2)
        chosen[y::side, x::side] = True
        middle &= chosen
    at = np.argwhere(middle)
    at = at[rng.permutation(len(at))[:most]]
    return (at - side // 2).clip(0) * cell_um


def _window(mask, corner, cell_um):
    side = round(FIELD_UM / cell_um)
    y, x = (corner / cell_um).astype(int)
    return mask[y : y + side, x : x + side]
