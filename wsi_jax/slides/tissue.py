"""Finds tissue on an overview."""

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from skimage import filters

from wsi_jax import config_fields


class Background(enum.Enum):
    """What lies around the tissue: glass (brightfield) or the dark (fluorescence)."""

    AUTO = "auto"
    BRIGHT = "bright"
    DARK = "dark"


class Source(enum.Enum):
    """Where tissue is taken from: the overview, or the manifest's mask_path."""

    AUTO = "auto"
    MASK = "mask"


@dataclasses.dataclass(kw_only=True)
class Tissue:
    """How tissue is separated from background.

    Attributes:
        source: AUTO computes it, whatever masks there are (they may be of lesions);
            MASK takes the mask or the outlines that every slide's mask_path names.
        mpp: um/px of the overview.
        background: AUTO calls a slide dark if most of what was scanned is near black
            and hardly anything near white.
        smooth_um: standard deviation of the Gaussian before thresholding.
        min_area_um2: smaller pieces are dropped (dust).
        max_hole_um2: smaller holes are filled (lumina, fat cells).
        saturation: Otsu's threshold is kept within these: without the lower one a blank
            slide would be half tissue, without the upper a full one half background.
        intensity: the same for the brightness of dark slides.
    """

    source: Source = Source.AUTO
    mpp: float = 8.0
    background: Background = Background.AUTO
    smooth_um: float = 12.0
    min_area_um2: float = 10_000.0
    max_hole_um2: float = 40_000.0
    saturation: tuple[float, float] = (0.05, 0.15)
    intensity: tuple[float, float] = (0.04, 0.16)

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "mpp": (config_fields.POSITIVE, math.inf)
    }

    def validate(self) -> None:
        """Raises FieldError where the bounds of a threshold are none."""
        for name in ("saturation", "intensity"):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= 1:
                raise config_fields.FieldError(
                    name, "two numbers that rise within 0 to 1"
                )


def tissue_mask(
    overview_rgb: UInt8[np.ndarray, "h w 3"], config: Tissue
) -> Bool[np.ndarray, "h w"]:
    """Marks tissue: saturated where the background is bright, bright where it is dark.

    Smoothed, thresholded (Otsu, 1979) within bounds, small pieces dropped, small holes
    filled. A blank slide gives an empty mask, a slide full of tissue a full one. The
    overview, of any size, has `config.mpp`.
    """
    signal, bounds = _signal(overview_rgb, config)
    smooth = ndimage.gaussian_filter(signal, config.smooth_um / config.mpp)
    threshold = np.clip(filters.threshold_otsu(smooth), *bounds)
    pixel_um2 = config.mpp**2
    mask = _drop_small(smooth > threshold, config.min_area_um2 / pixel_um2)
    return ~_drop_small(~mask, config.max_hole_um2 / pixel_um2)


def find_background(
    overview_rgb: UInt8[np.ndarray, "h w 3"],
    config: Tissue,
    fill_rgb: tuple[int, int, int] | None = None,
) -> Background:
    """BRIGHT or DARK: what lies around the tissue of a slide, as configured or found.

    `fill_rgb`, the colour of what was never scanned, if the file states one, does not
    count, nor does black without any noise, which converters fill in.
    """
    if config.background is not Background.AUTO:
        return config.background
    scanned = overview_rgb.any(-1)
    if fill_rgb is not None:
        scanned &= (overview_rgb != np.array(fill_rgb, np.uint8)).any(-1)
    brightness = overview_rgb.max(-1)[scanned] / np.float32(255)
    if not len(brightness):
        return Background.BRIGHT
    dark = np.median(brightness) < 0.2 and np.mean(brightness > 0.8) < 0.05
    return Background.DARK if dark else Background.BRIGHT


def _signal(rgb, config) -> tuple[Float[np.ndarray, "h w"], tuple[float, float]]:
    """A signal that is high on tissue, and the bounds of its threshold."""
    high = rgb.max(-1).astype(np.float32) / 255
    low = rgb.min(-1).astype(np.float32) / 255
    if find_background(rgb, config) is Background.DARK:
        # The root evens out a few very bright nuclei against many dim ones.
        return np.sqrt(high), tuple(np.sqrt(config.intensity).tolist())
    # HSV saturation; near black, where JPEG noise would saturate, it fades to none.
    return (high - low) / np.maximum(high, 0.25), config.saturation


def _drop_small(mask, least_px):
    """Clears the 4-connected pieces of fewer than `least_px` pixels."""
    pieces, _ = ndimage.label(mask)
    keep = np.bincount(pieces.ravel()) >= least_px
    keep[0] = False
    return keep[pieces]
