"""Levels of a TIFF read from the file itself, tile by tile, to the stored pixel."""

import os
from collections.abc import Sequence

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG

from wsi_jax.slides import decoded, jpeg

WHITE = (255, 255, 255)
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


class TiffReader:
    """TIFFs that OpenSlide does not open: strips, one level, other compressions."""

    background = WHITE

    def __init__(self, path: str):
        self._tiff = tifffile.TiffFile(path)
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
        self.properties["tiff.ImageDescription"] = self._tiff.pages[0].description
        file = self._tiff.filehandle.fileno()
        self._planes = [Plane(page, file) for page in pages]

    def read(
        self, level: int, y: int, x: int, h: int, w: int, out: np.ndarray | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        return self._planes[level].read(y, x, h, w, out)

    def read_tiles(
        self,
        level: int,
        yx: Sequence[Sequence[int]],
        tiles: Sequence[UInt8[np.ndarray, "h w 3"]],
    ) -> None:
        self._planes[level].read_tiles(yx, tiles)

    def close(self) -> None:
        for plane in self._planes:
            plane.close()
        self._tiff.close()


class Plane:
    """Random access to one TIFF page by its tiles or strips. Any thread.

    Args:
        page: of tifffile, one that is not `unreadable`.
        file: descriptor of the file; reads have no position of their own.
    """

    def __init__(self, page, file: int):
        self._file = file
        self._h, self._w = page.shape[:2]
        if page.is_tiled:
            self._step = page.tilelength, page.tilewidth
        else:
            self._step = min(page.rowsperstrip, self._h), self._w
        self._columns = -(-self._w // self._step[1])
        # tifffile's tuples take forty bytes a number.
        self._offsets = np.array(page.dataoffsets, np.int64)
        self._counts = np.array(page.databytecounts, np.int64)
        self._pixels = _jpeg(page) if is_jpeg(page) else _any(page)

    def read(self, y, x, h, w, out=None):
        """Raises whatever a decoder raises, and ValueError for a missing tile."""
        if out is None:
            out = np.empty((h, w, 3), np.uint8)
        self.read_tiles([(y, x)], [out])
        return out

    def read_tiles(self, yx, tiles):
        """Rectangles from their corners on; decodes a segment once for all of them."""
        parts = {}
        for corner, tile in zip(yx, tiles, strict=True):
            for index, there, here in self._overlaps(*corner, *tile.shape[:2]):
                parts.setdefault(index, []).append((there, tile[here]))
        shape = *self._step, 3
        for index, pieces in parts.items():
            place = pieces[0][1]
            if len(pieces) == 1 and place.shape == shape and place.flags.c_contiguous:
                decoded.tiles.copy(self, index, place) or self._decode(index, place)
                continue
            with decoded.tiles.tile(self, index, shape, self._decode) as segment:
                for there, place in pieces:
                    place[:] = segment[there]

    def _overlaps(self, y, x, h, w):
        """Of each segment that a rectangle touches the index, and where they overlap
        as slices of the segment and of the rectangle."""
        step_y, step_x = self._step
        for i in range(y // step_y, -(-(y + h) // step_y)):
            top = i * step_y - y
            y0, y1 = max(top, 0), min(top + step_y, h)
            for j in range(x // step_x, -(-(x + w) // step_x)):
                left = j * step_x - x
                x0, x1 = max(left, 0), min(left + step_x, w)
                there = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
                yield i * self._columns + j, there, (slice(y0, y1), slice(x0, x1))

    def samples(self) -> list[tuple[int, int, int, int]]:
        """The middles (y, x, h, w) of some segments: the first, the middle one, the
        last, and that of most detail."""
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
        self._pixels(data, index, out)

    def close(self) -> None:
        """Forgets its decoded tiles."""
        decoded.tiles.drop(self)


def _jpeg(page):
    """Decodes tiles or strips of JPEG; a damaged one is an error."""
    head = jpeg.header(page.jpegtables, _JPEG_COLOURS[page.photometric])
    if page.is_tiled:
        return lambda data, index, out: jpeg.decode(data, head, len(out), out)
    h, step = page.shape[0], page.rowsperstrip
    rows = lambda index: min(step, h - index * step)
    return lambda data, index, out: jpeg.decode(data, head, rows(index), out)


def _any(page):
    """Decodes whatever tifffile does."""
    decode, tables = page.decode, page.jpegtables

    def pixels(data, index, out):
        segment = _three_channels(decode(data, index, jpegtables=tables)[0][0])
        out[: segment.shape[0], : segment.shape[1]] = segment

    return pixels


def is_jpeg(page) -> bool:
    """Whether the tiles or strips of a page are JPEG, in colour or grey."""
    return page.compression == COMPRESSION.JPEG


def unreadable(page):
    """Why `Plane` would not read this page right, or None."""
    if page.dtype != np.uint8:
        return f"pixels are {page.dtype}, not uint8"
    if page.compression not in _COMPRESSIONS:
        return f"compression {page.compression!r}"
    if page.photometric not in _JPEG_COLOURS:
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
        return np.array(over)
    return np.array(image.convert("RGB"))
