"""How large a slide's pixels are: um/px of level 0 and the steps of its pyramid."""

import math
from collections.abc import Mapping

from wsi_jax.slides.readers import SlideError

# Microscopes; 72 dpi (353 um/px) and other defaults of image writers fall outside.
SANE_MPP = (0.05, 50.0)
_UNIT_UM = {"inch": 25400.0, "centimeter": 10000.0}


class MppError(SlideError):
    """The um/px of a slide is not to be had from its file."""


def resolve_mpp(slide_id, properties: Mapping[str, str], given):
    """um/px of level 0 and where it was found: manifest, slide property, TIFF tags."""
    low, high = SANE_MPP
    mend = (
        "give its mpp in the manifest's mpp column, or for all slides with "
        "--config.data.mpp"
    )
    if given is not None:
        if not low <= given <= high:
            raise SlideError(
                f"{slide_id}: the mpp given is {given:g} um/px, outside {low:g}-"
                f"{high:g}; mend the manifest's mpp column or --config.data.mpp"
            )
        return float(given), "manifest"
    found = []
    for source, read in (("property", _property_mpp), ("tiff", _tiff_mpp)):
        yx = read(properties)
        if yx is None:
            continue
        if not all(low <= mpp <= high for mpp in yx):
            found.append(f"; its {source} says {yx[0]:g}, outside {low:g}-{high:g}")
            continue
        if abs(yx[0] / yx[1] - 1) > 0.01:
            raise MppError(
                f"{slide_id}: its pixels are not square, {yx[0]:g} x {yx[1]:g} um "
                f"(y, x); resample the file, or to read them as if square {mend}"
            )
        return sum(yx) / 2, source
    raise MppError(f"{slide_id}: no usable um/px in the file{''.join(found)}; {mend}")


def _property_mpp(properties):
    try:
        return tuple(float(properties[f"openslide.mpp-{axis}"]) for axis in "yx")
    except (KeyError, ValueError):
        return None


def _tiff_mpp(properties):
    try:
        unit = _UNIT_UM[properties["tiff.ResolutionUnit"]]
        return tuple(unit / float(properties[f"tiff.{a}Resolution"]) for a in "YX")
    except (KeyError, ValueError, ZeroDivisionError):
        return None


def bounds_yx(properties: Mapping[str, str]) -> tuple[int, int]:
    """Corner of the scanned area, (y, x) in level-0 pixels; (0, 0) by default."""
    try:
        return tuple(int(properties[f"openslide.bounds-{axis}"]) for axis in "yx")
    except (KeyError, ValueError):
        return 0, 0


def downsample(full, shape):
    """Level-0 pixels per pixel of a level, from the two sizes.

    Writers round the size of a level, not the step: 2967 rows halved thrice are 370,
    and the downsample is 8, not 8.02. A power of two, else a whole number, is believed
    where the sizes allow it.
    """
    ratio = sum(n / m for n, m in zip(full, shape, strict=True)) / 2
    power = 2 ** round(math.log2(ratio))
    candidates = ([power] if abs(ratio / power - 1) < 0.05 else []) + [round(ratio)]
    for step in candidates:
        if all(abs(n - m * step) < step for n, m in zip(full, shape, strict=True)):
            return float(step)
    return ratio
