"""Back ends that read an integer rectangle of one stored level, as RGB.

OpenSlide reads what it opens (SVS, NDPI, MRXS, DICOM, tiled TIFF, ...), tifffile the
TIFFs it does not (strips, odd compressions), Pillow flat images. Another back end is
another class with the attributes of `Reader`.
"""

import contextlib
import functools
import threading
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import openslide
from jaxtyping import UInt8
from PIL import Image

from wsi_jax.slides.tiff import (
    WHITE,
    Plane,
    TiffReader,
    flatten,
    open_tiff,
    unreadable,
)

# One cache of decoded tiles for all OpenSlide handles; a private one each would grow
# with the number of open slides.
_CACHE_BYTES = 256 * 2**20
_FLAT_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}


class SlideError(ValueError):
    """A slide that cannot be used; the message names it and what would mend it."""


@runtime_checkable
class Reader(Protocol):
    """One open file.

    Attributes:
        shapes: (h, w) of each level, finest first.
        background: colour of pixels that were never scanned.
        properties: raw metadata; resolutions under OpenSlide's names
            (`openslide.mpp-x`, `tiff.XResolution`, `tiff.ResolutionUnit`, ...).
    """

    shapes: tuple[tuple[int, int], ...]
    background: tuple[int, int, int]
    properties: Mapping[str, str]

    def read(
        self, level: int, y: int, x: int, h: int, w: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels [y, y + h) x [x, x + w) of `level`, all inside it. Any thread."""
        ...

    def close(self) -> None: ...


def open_reader(path: str) -> Reader:
    """Opens `path` with the first back end that can.

    Raises:
        SlideError: none can; the message has each one's reason.
    """
    reasons = []
    for back_end in (OpenSlideReader, TiffReader, FlatReader):
        try:
            return back_end(path)
        except Exception as error:  # decoders raise whatever they like on junk
            reasons.append(f"{back_end.__name__}: {error}")
    raise SlideError(
        f"{path} cannot be opened as a slide; copy it again if it is damaged, else "
        f"convert it to a tiled 8-bit RGB TIFF ({'; '.join(reasons)})"
    )


class OpenSlideReader:
    """Everything OpenSlide opens.

    OpenSlide takes level-0 integers and divides them by a downsample it averages from
    the level sizes (4.002 where the writer meant 4), so at most places of such a level
    it can only return pixels interpolated between the stored ones. Those levels are
    read from the TIFF itself where it can be (Aperio, generic TIFF); elsewhere (DICOM)
    OpenSlide's nearest is returned, at most 1 / (2 downsample) px away.
    """

    def __init__(self, path: str):
        self._slide = openslide.OpenSlide(path)
        self._slide.set_cache(_shared_cache())
        self.shapes = tuple((h, w) for w, h in self._slide.level_dimensions)
        self.properties = dict(self._slide.properties)
        colour = self.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)
        self.background = tuple(bytes.fromhex(colour)) if colour else WHITE
        self._downsamples = self._slide.level_downsamples
        self._tiff, self._planes = None, {}
        vendor = self.properties[openslide.PROPERTY_NAME_VENDOR]
        if vendor in ("aperio", "generic-tiff"):
            self._find_exact_planes(path)

    def _find_exact_planes(self, path):
        """Has the levels at which OpenSlide would interpolate read from the TIFF."""
        odd = [i for i, ds in enumerate(self._downsamples) if ds != round(ds)]
        if not odd:
            return
        try:
            self._tiff = open_tiff(path)
        except Exception:  # what OpenSlide opened may still be too odd for tifffile
            return
        tiled = {page.shape[:2]: page for page in self._tiff.pages if page.is_tiled}
        for level in odd:
            if (page := tiled.get(self.shapes[level])) is None:
                continue
            # A missing tile is OpenSlide's to fill.
            if unreadable(page) is None and all(page.databytecounts):
                self._planes[level] = Plane(page)

    def read(
        self, level: int, y: int, x: int, h: int, w: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        if level in self._planes:
            return self._planes[level].read(y, x, h, w)
        ds = self._downsamples[level]
        location = (round(x * ds), round(y * ds))
        return flatten(
            self._slide.read_region(location, level, (w, h)), self.background
        )

    def close(self) -> None:
        self._slide.close()
        if self._tiff is not None:
            self._tiff.close()


class FlatReader:
    """PNG, JPEG and other flat images, by Pillow; decoded whole at the first read."""

    background = WHITE

    def __init__(self, path: str):
        self._image = Image.open(path)
        self._lock = threading.Lock()
        self._pixels = None
        reason = _not_8_bit(self._image) or _stack(self._image, path)
        if reason is not None:
            self._image.close()
            raise ValueError(reason)
        self.shapes = ((self._image.height, self._image.width),)
        # A flat image's dpi speaks of paper, not of glass: its mpp must be given.
        self.properties = {}

    def read(
        self, level: int, y: int, x: int, h: int, w: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        with self._lock:
            if self._pixels is None:
                self._pixels = flatten(self._image.convert("RGBA"), self.background)
        return self._pixels[y : y + h, x : x + w]

    def close(self) -> None:
        self._image.close()
        self._pixels = None


def _not_8_bit(image):
    """Why a Pillow image is not 8-bit colour, or None."""
    if image.mode not in _FLAT_MODES:
        return f"Pillow mode {image.mode}, not 8-bit colour"
    # Of a 16-bit TIFF Pillow would silently keep the high byte.
    if image.format == "TIFF" and 258 in image.tag_v2:  # BitsPerSample
        bits = max(image.tag_v2[258])
        return f"{bits} bits a channel, not 8" if bits > 8 else None
    return None


def _stack(image, path):
    """Why a file is more than the one image that Pillow would show, or None."""
    if (n := getattr(image, "n_frames", 1)) > 1:
        return f"a stack of {n} images, not one"
    if image.format == "TIFF":
        # Some stacks say in their description alone that there is more to come.
        with contextlib.suppress(Exception), open_tiff(path) as tiff:
            axes = tiff.series[0].axes
            if set(axes) - set("YXS"):
                return f"a stack of images (axes {axes}), not one"
    return None


@functools.cache
def _shared_cache():
    return openslide.OpenSlideCache(_CACHE_BYTES)
