"""A probe that looks hard at one scale, to show where a cohort's signal is.

Fields of one physical size are described at every resolution by the same measures,
the energy of every octave that the resolution has among them, and judged by a linear
classifier that trains on training and validation slides and is tested on test slides,
whose tiles come from other clusters.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage
from sklearn import linear_model, pipeline, preprocessing

FIELD_UM = 112.0
QUANTILES = (0.05, 0.25, 0.75, 0.95)
# Haematoxylin against eosin against the rest, from optical density.
STAINS = np.linalg.inv(
    np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
).astype(np.float32)


def describe(fields: UInt8[np.ndarray, "n s s 3"]) -> Float[np.ndarray, "n d"]:
    """Colour, spread and the energy of each octave of each field, per stain."""
    if not len(fields):
        return describe(np.zeros((1, *fields.shape[1:]), np.uint8))[:0]
    density = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
    stains = density[fields] @ STAINS
    axes = (1, 2)
    found = [stains.mean(axes), np.log(stains.std(axes) + 1e-3)]
    found += list(np.quantile(stains, QUANTILES, axis=axes))
    for axis in (1, 2):
        for order in (1, 2):
            step = np.abs(np.diff(stains, order, axis)).mean(axes)
            found.append(np.log(step + 1e-3))
    cross = np.diff(np.diff(stains, axis=1), axis=2)
    found.append(np.log(np.abs(cross).mean(axes) + 1e-3))
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
        found += [np.log(energy), peaks, skew]
    return np.concatenate(found, axis=1)


def fields(
    overview: UInt8[np.ndarray, "h w 3"], mpp: float, corners_um: Sequence
) -> UInt8[np.ndarray, "n s s 3"]:
    """Fields of FIELD_UM cut from a slide at `mpp`, by their corners (y, x), um."""
    side = max(round(FIELD_UM / mpp), 1)
    cut = []
    for corner in corners_um:
        y, x = (
            int(np.clip(round(at / mpp), 0, limit - side))
            for at, limit in zip(corner, overview.shape, strict=False)
        )
        cut.append(overview[y : y + side, x : x + side])
    return np.stack(cut) if cut else np.zeros((0, side, side, 3), np.uint8)


def pool(described: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d3"]:
    """One description of a slide from those of its fields, wherever they lie."""
    high = np.quantile(described, 0.95, axis=0)
    return np.concatenate([described.mean(0), described.std(0), high])


def judge(
    train: Float[np.ndarray, "n d"],
    labels: np.ndarray,
    test: Float[np.ndarray, "m d"],
    strength: float = 0.1,
) -> Float[np.ndarray, " m"]:
    """Scores of test rows by a ridge-penalised logistic regression."""
    probe = pipeline.make_pipeline(
        preprocessing.StandardScaler(),
        linear_model.LogisticRegression(
            C=strength, class_weight="balanced", max_iter=2000
        ),
    )
    return probe.fit(train, labels).decision_function(test)


def neighbours(overview: UInt8[np.ndarray, "h w 3"], mpp: float) -> list[float]:
    """How like each piece of tissue is to the piece nearest to it.

    Args:
        overview: a whole slide.
        mpp: micrometres per pixel of it.

    Returns:
        Mean, least and largest difference in colour of nearest pieces, all relative to
        the spread of colour over pieces.
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
