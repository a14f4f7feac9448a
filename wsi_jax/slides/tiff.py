"""Levels of a TIFF read from the file itself, tile by tile, to the stored pixel."""

import functools

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG

WHITE = (255, 255, 255)
# Decoded segments kept per page: reads rarely keep to one segment.
_KEPT_SEGMENTS = 32
# Compressions tifffile decodes to the colours the file means. Aperio's JPEG 2000
# (33003, 33005) is left to OpenSlide, which knows its colour spaces.
_COMPRESSIONS = {
    *(COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE),
    *(COMPRESSION.DEFLATE, COMPRESSION.JPEG, COMPRESSION.PACKBITS, COMPRESSION.ZSTD),
}
_PHOTOMETRIC = {PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR, PHOTOMETRIC.MINISBLACK}
_UNITS = {1: "none", 2: "inch", 3: "centimeter"}


class TiffReader:
    """TIFFs that OpenSlide does not open: strips, one level, other compressions."""

    background = WHITE

    def __init__(self, path: str):
        self._tiff = open_tiff(path)
        try:
            series = self._tiff.series[0]
            if series.axes not in ("YX", "YXS"):
                raise ValueError(f"a stack of images (axes {series.axes}), not one")
            pages = [level.keyframe for level in series.levels]
            for page in pages:
                if (reason := unreadable(page)) is not None:
                    raise ValueError(reason)
        except Exception:
            self._tiff.close()
            raise
        self.shapes = tuple(page.shape[:2] for page in pages)
        self.properties = _resolution_properties(pages[0])
        self._planes = [Plane(page) for page in pages]

    def read(
        self, level: int, y: int, x: int, h: int, w: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        return self._planes[level].read(y, x, h, w)

    def close(self) -> None:
        self._tiff.close()


class Plane:
    """Random access to one TIFF page by its tiles or strips. Any thread."""

    def __init__(self, page):
        self._page = page
        self._file = page.parent.filehandle
        h, w = page.shape[:2]
        if page.is_tiled:
            self._step = page.tilelength, page.tilewidth
        else:
            self._step = min(page.rowsperstrip, h), w
        self._columns = -(-w // self._step[1])
        self._segment = functools.lru_cache(_KEPT_SEGMENTS)(self._decode)

    def _decode(self, index):
        page = self._page
        with self._file.lock:
            self._file.seek(page.dataoffsets[index])
            data = self._file.read(page.databytecounts[index])
        pixels = page.decode(data, index, jpegtables=page.jpegtables)[0]
        if pixels is None:
            return np.full((*self._step, 3), 255, np.uint8)
        return _three_channels(pixels[0])

    def read(self, y, x, h, w):
        out = np.empty((h, w, 3), np.uint8)
        step_y, step_x = self._step
        for i in range(y // step_y, -(-(y + h) // step_y)):
            for j in range(x // step_x, -(-(x + w) // step_x)):
                segment = self._segment(i * self._columns + j)
                top, left = i * step_y, j * step_x
                y0, y1 = max(y, top), min(y + h, top + step_y)
                x0, x1 = max(x, left), min(x + w, left + step_x)
                part = segment[y0 - top : y1 - top, x0 - left : x1 - left]
                out[y0 - y : y1 - y, x0 - x : x1 - x] = part
        return out


def open_tiff(path) -> tifffile.TiffFile:
    """A TiffFile whose planes may be read by many threads."""
    tiff = tifffile.TiffFile(path)
    # One file position for all threads and planes; without this its lock is a dummy.
    tiff.filehandle.set_lock(True)
    return tiff


def unreadable(page):
    """Why `Plane` would not read this page right, or None."""
    if page.dtype != np.uint8:
        return f"pixels are {page.dtype}, not uint8"
    if page.compression not in _COMPRESSIONS:
        return f"compression {page.compression!r}"
    if page.photometric not in _PHOTOMETRIC:
        return f"photometric {page.photometric!r}"
    if page.photometric == PHOTOMETRIC.YCBCR and page.compression != COMPRESSION.JPEG:
        return "YCbCr without JPEG"
    if page.samplesperpixel not in (1, 3, 4):
        return f"{page.samplesperpixel} channels"
    if page.samplesperpixel > 1 and page.planarconfig != PLANARCONFIG.CONTIG:
        return "separate colour planes"
    return None


def _resolution_properties(page):
    tags = page.tags
    if "XResolution" not in tags or "YResolution" not in tags:
        return {}
    # Inches where the tag is missing: TIFF 6.0, p. 38.
    unit = tags["ResolutionUnit"].value if "ResolutionUnit" in tags else 2
    if unit not in _UNITS:
        return {}
    properties = {"tiff.ResolutionUnit": _UNITS[unit]}
    for name in ("XResolution", "YResolution"):
        numerator, denominator = tags[name].value
        if denominator:
            properties[f"tiff.{name}"] = repr(numerator / denominator)
    return properties


def _three_channels(pixels):
    """uint8 [h w s], s of 1, 3 or 4, to RGB."""
    if pixels.shape[-1] == 4:
        return flatten(Image.fromarray(pixels, "RGBA"), WHITE)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def flatten(image, background) -> UInt8[np.ndarray, "h w 3"]:
    """A Pillow RGBA image laid over `background`."""
    if np.asarray(image)[..., 3].min() < 255:
        over = Image.new("RGB", image.size, background)
        over.paste(image, mask=image.getchannel("A"))
        return np.asarray(over)
    return np.asarray(image.convert("RGB"))
