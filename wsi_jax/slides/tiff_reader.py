"""TIFFs read without OpenSlide: tifffile finds the tiles or strips, we decode them."""

import os
from collections.abc import Sequence

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG

from wsi_jax.slides import size_limits, strict_jpeg
from wsi_jax.slides.chunked_level import ChunkedLevel
from wsi_jax.slides.find_levels import pyramid_levels
from wsi_jax.slides.reader_protocol import WHITE, Reader, flatten

# Compressions tifffile decodes to the colours the file means. Aperio's JPEG 2000
# (33003, 33005) is left to OpenSlide, which knows its colour spaces.
_COMPRESSIONS = {
    *(COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE),
    *(COMPRESSION.DEFLATE, COMPRESSION.JPEG, COMPRESSION.PACKBITS, COMPRESSION.ZSTD),
}
_JPEG_COLOURS = {
    PHOTOMETRIC.RGB: "RGB",
    PHOTOMETRIC.YCBCR: "YCBCR",
    PHOTOMETRIC.MINISBLACK: "GRAYSCALE",
}
_UNITS = {1: "none", 2: "inch", 3: "centimeter"}


class TiffReader(Reader):
    """TIFFs that OpenSlide does not open: strips, one level, other compressions."""

    background = WHITE

    def __init__(self, path: str):
        self._tiff = tifffile.TiffFile(path)
        try:
            if fault := _axes_fault(self._tiff):
                raise ValueError(fault)
            pages = [level.keyframe for level in self._tiff.series[0].levels]
            tiles = [(page.tilelength, page.tilewidth) for page in pages]
            levels = pyramid_levels([page.shape[:2] for page in pages], tiles)
            pages = [pages[level] for level in levels]
            for page in pages:
                if fault := page_fault(page):
                    raise ValueError(fault)
        except Exception:
            self._tiff.close()
            raise
        self.level_shapes = tuple(levels.values())
        self.properties = _resolution_properties(pages[0])
        self.properties["tiff.ImageDescription"] = self._tiff.pages[0].description
        file = self._tiff.filehandle.fileno()
        self._levels = [TiffLevel(page, file) for page in pages]

    def read_region(
        self, level: int, y: int, x: int, h: int, w: int, out: np.ndarray | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        return self._levels[level].read(y, x, h, w, out)

    def read_regions(
        self,
        level: int,
        corners: Sequence[Sequence[int]],
        outs: Sequence[UInt8[np.ndarray, "h w 3"]],
    ) -> None:
        self._levels[level].read_many(corners, outs)

    def close(self) -> None:
        for level in self._levels:
            level.close()
        self._tiff.close()


class TiffLevel(ChunkedLevel):
    """Random access to one TIFF page by its tiles or strips. Any thread.

    Args:
        page: tifffile's, without a `page_fault`.
        file: descriptor of the file; reads have no position of their own.
    """

    def __init__(self, page, file: int):
        h, w = page.shape[:2]
        strip = min(page.rowsperstrip, h), w
        step = (page.tilelength, page.tilewidth) if page.is_tiled else strip
        super().__init__((h, w), step)
        self._file = file
        # tifffile's tuples take forty bytes a number.
        self._offsets = np.array(page.dataoffsets, np.int64)
        self._counts = np.array(page.databytecounts, np.int64)
        decoder = _jpeg_decoder if is_jpeg(page) else _tifffile_decoder
        self._decode_segment = decoder(page)

    def samples(self) -> list[tuple[int, int, int, int]]:
        """The middles (y, x, h, w) of four segments: the first, the middle one, the
        last, and the one of most detail."""
        there = np.flatnonzero(self._counts)
        if not len(there):
            return []
        chosen = {*there[[0, len(there) // 2, -1]].tolist(), int(self._counts.argmax())}
        boxes = map(self._middle, sorted(chosen))
        return [box for box in boxes if min(box[2:]) > 1]

    def _middle(self, index):
        y, x = np.multiply(divmod(index, self._columns), self._step).tolist()
        h, w = min(self._step[0], self._h - y), min(self._step[1], self._w - x)
        return y + h // 4, x + w // 4, h // 2 + 1, w // 2 + 1

    def _decode(self, index, out):
        n = int(self._counts[index])
        data = os.pread(self._file, n, int(self._offsets[index]))
        if not n or len(data) < n:
            raise ValueError(f"tile {index} is {'cut short' if n else 'missing'}")
        self._decode_segment(data, index, out)


def _jpeg_decoder(page):
    """Decodes tiles or strips of JPEG; a damaged one is an error."""
    head = strict_jpeg.header(page.jpegtables, _JPEG_COLOURS[page.photometric])
    if page.is_tiled:
        return lambda data, index, out: strict_jpeg.decode(data, head, len(out), out)
    h, step = page.shape[0], page.rowsperstrip
    rows = lambda index: min(step, h - index * step)
    return lambda data, index, out: strict_jpeg.decode(data, head, rows(index), out)


def _tifffile_decoder(page):
    """Decodes whatever tifffile does."""
    decode, tables = page.decode, page.jpegtables

    def pixels(data, index, out):
        segment = _three_channels(decode(data, index, jpegtables=tables)[0][0])
        out[: segment.shape[0], : segment.shape[1]] = segment

    return pixels


def is_jpeg(page) -> bool:
    """Whether the tiles or strips of a page are JPEG, in colour or grey."""
    return page.compression == COMPRESSION.JPEG


def page_fault(page) -> str:
    """Why `TiffLevel` would not read this page right, or ""."""
    if page.dtype != np.uint8:
        return f"pixels are {page.dtype}, not uint8"
    if page.compression not in _COMPRESSIONS:
        return f"compression {page.compression!r}"
    if page.photometric not in _JPEG_COLOURS:
        return f"photometric {page.photometric!r}"
    if page.photometric == PHOTOMETRIC.YCBCR and page.compression != COMPRESSION.JPEG:
        return "YCbCr without JPEG"
    strip = min(page.rowsperstrip, page.shape[0]) * page.shape[1]
    if not page.is_tiled and strip > size_limits.STRIP_PX:
        return f"strips of {strip} px; the limit is {size_limits.STRIP_PX}"
    if page.samplesperpixel not in (1, 3, 4):
        return f"{page.samplesperpixel} channels"
    if page.samplesperpixel > 1 and page.planarconfig != PLANARCONFIG.CONTIG:
        return "separate colour planes"
    return ""


def stack_fault(path: str) -> str:
    """Why a TIFF is several images, or ""; some say so in their description only."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return _axes_fault(tiff)
    except Exception:  # what others open may be too odd for tifffile
        return ""


def _axes_fault(tiff):
    axes = tiff.series[0].axes
    return f"a stack of images (axes {axes}), not one" if set(axes) - set("YXS") else ""


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
