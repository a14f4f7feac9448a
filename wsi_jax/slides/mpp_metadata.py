"""um/px of a slide's level 0, from its metadata."""

import functools
from collections.abc import Mapping

import defusedxml.ElementTree

from wsi_jax.slides.reader_protocol import SlideError

# Microscopes; 72 dpi (353 um/px) and other defaults of image writers fall outside.
SANE_MPP = (0.05, 50.0)
# A manifest and a file that differ by less may both be right.
MAX_DIFFERENCE = 0.05
_UNIT_UM = {"inch": 25400.0, "centimeter": 10000.0}
_OME_UNIT_UM = {
    **dict.fromkeys(("\u00b5m", "\u03bcm", "um"), 1.0),  # micro sign, Greek mu
    **{"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25400.0},
}


class MppError(SlideError):
    """A slide whose file does not state its um/px."""


def resolve_mpp(
    slide_id: str,
    properties: Mapping[str, str],
    given: float | None,
    shape: tuple[int, int],
) -> tuple[float, str]:
    """um/px of level 0 and its source: "manifest", "ome", "property" or "tiff".

    What the manifest gives wins over the file, whose `properties` have OpenSlide's
    names.

    MppError: none is given and the file states none.
    SlideError: the one given is not possible.
    """
    low, high = SANE_MPP
    mend = (
        "give its mpp in the CSV's mpp column, or for all slides that state none with "
        "--config.data.mpp"
    )
    if given is not None:
        if not low <= given <= high:
            raise SlideError(
                f"{slide_id}: the mpp given is {given:g} um/px, outside {low:g}-"
                f"{high:g}; mend the CSV's mpp column or --config.data.mpp"
            )
        return float(given), "manifest"
    outside = []
    for source, yx in _stated(properties, shape):
        if not _is_sane(yx):
            outside.append(f"; its {source} says {yx[0]:g}, outside {low:g}-{high:g}")
            continue
        if abs(yx[0] / yx[1] - 1) > 0.01:
            raise MppError(
                f"{slide_id}: its pixels are not square, {yx[0]:g} x {yx[1]:g} um "
                f"(y, x); resample the file, or to read them as if square {mend}"
            )
        return sum(yx) / 2, source
    raise MppError(f"{slide_id}: no usable um/px in the file{''.join(outside)}; {mend}")


def contradiction(
    mpp: float, source: str, properties: Mapping[str, str], shape: tuple[int, int]
) -> str:
    """A note where the file states an mpp that is another by more than 5 %, or ""."""
    for other, yx in _stated(properties, shape):
        if _is_sane(yx) and any(abs(one / mpp - 1) > MAX_DIFFERENCE for one in yx):
            size = " x ".join(f"{one:.4g}" for one in dict.fromkeys(yx))
            return (
                f"mpp {mpp:.4g} is used, by its {source}; the file's {other} says "
                f"{size}"
            )
    return ""


def _stated(properties, shape):
    """(source, (y, x) in um/px) for everything in a file that states an mpp."""
    yield from (
        (source, yx)
        for source, yx in (
            ("ome", _ome_mpp(properties.get("tiff.ImageDescription", ""), shape)),
            ("property", _property_mpp(properties)),
            ("tiff", _tiff_mpp(properties)),
        )
        if yx is not None
    )


def _is_sane(yx):
    return all(SANE_MPP[0] <= mpp <= SANE_MPP[1] for mpp in yx)


@functools.lru_cache(maxsize=16)  # a slide is opened many times
def _ome_mpp(description, shape):
    """PhysicalSize of the image of this shape in an OME-XML; None where it is damaged.

    OpenSlide makes a property of the TIFF's resolution, which writers of OME leave at
    any default: so OME comes first.
    """
    if "<OME" not in description:
        return None
    try:
        root = defusedxml.ElementTree.fromstring(description)
        for pixels in root.iterfind(".//{*}Pixels"):
            if (int(pixels.get("SizeY")), int(pixels.get("SizeX"))) == shape:
                return tuple(_physical_size(pixels, axis) for axis in "YX")
    except Exception:  # then the slide states none in this way
        return None
    return None


def _physical_size(pixels, axis):
    unit = pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m")  # the schema's default
    return float(pixels.get(f"PhysicalSize{axis}")) * _OME_UNIT_UM[unit]


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
