"""Back ends that read an integer rectangle of one stored level, as RGB.

OpenSlide reads what it opens (SVS, NDPI, MRXS, DICOM, tiled TIFF, ...), tifffile the
TIFFs it does not (strips, odd compressions), Pillow flat images. Another back end is
another class with the attributes of `Reader`.
"""

import collections
import contextlib
import functools
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import openslide
import tifffile
from jaxtyping import UInt8
from PIL import Image

from wsi_jax.slides import jpeg
from wsi_jax.slides.checks import check_file, check_size
from wsi_jax.slides.direct import DirectPlanes, is_exact
from wsi_jax.slides.directories import read_directories
from wsi_jax.slides.levels import pyramid_levels
from wsi_jax.slides.segments import Segments
from wsi_jax.slides.tiff_reader import WHITE, TiffReader, flatten, is_jpeg

# One cache of decoded tiles for all OpenSlide handles; a private one each would grow
# with the number of open slides.
_CACHE_BYTES = 128 * 2**20
# OpenSlide's names of the TIFFs whose levels are each one page of tiles.
_PLAIN_TIFFS = ("aperio", "generic-tiff", "philips")
# Beyond a block's edge a level may go on a part of a pixel aside: few edges, then.
_BLOCK_PX = 512
_REDUCED = 1  # TIFF's NewSubfileType
_PNG_BITS = 24  # where a PNG says how many bits a channel has
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
        self, level: int, y: int, x: int, h: int, w: int, out: np.ndarray | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels [y, y + h) x [x, x + w) of `level`, all inside it. Any thread.

        They may, but need not, be written to `out` [h w 3], which is then returned.
        """
        ...

    def read_tiles(
        self,
        level: int,
        yx: Sequence[Sequence[int]],
        tiles: Sequence[UInt8[np.ndarray, "h w 3"]],
    ) -> None:
        """Writes rectangles from their corners on, each as `read` reads it."""
        for (y, x), tile in zip(yx, tiles, strict=True):
            tile[:] = self.read(level, y, x, *tile.shape[:2], tile)

    def close(self) -> None: ...


def open_reader(path: str) -> Reader:
    """Opens `path` with the first back end that can.

    Raises:
        SlideError: none can; the message has each one's reason.
    """
    reasons = []
    try:
        check_file(path)
    except Exception as error:  # whatever junk may raise
        raise _unopened(path, error) from error
    for back_end in (OpenSlideReader, TiffReader, FlatReader):
        try:
            return back_end(path)
        except Exception as error:  # decoders raise whatever they like on junk
            reasons.append(f"{back_end.__name__}: {error}")
    raise _unopened(path, "; ".join(reasons))


def _unopened(path, reason):
    return SlideError(
        f"{path} cannot be opened as a slide; copy it again if it is damaged, else "
        f"convert it to a tiled 8-bit RGB TIFF ({reason})"
    )


class OpenSlideReader(Reader):
    """Everything OpenSlide opens.

    Tiles of JPEG in a TIFF (Aperio, generic, Philips) are decoded straight from the
    file, where that is seen to give OpenSlide's pixels; OpenSlide reads the rest.

    OpenSlide takes level-0 integers and divides them by a downsample it averages from
    the level sizes (4.002 where the writer meant 4), so at most places of such a level
    it can only return pixels interpolated between the stored ones. Those levels are
    read from the TIFF itself whatever their compression, if tifffile knows it;
    elsewhere (DICOM) they are read in blocks of fixed corners, at OpenSlide's nearest,
    at most 1 / (2 downsample) px away: reads that overlap agree.

    Images of other proportions than level 0, a label or a macro, are no levels.
    """

    def __init__(self, path: str):
        self._path = path
        self._slide = self._open()
        self.properties = dict(self._slide.properties)
        stored = [(h, w) for w, h in self._slide.level_dimensions]
        vendor = self.properties[openslide.PROPERTY_NAME_VENDOR]
        try:
            levels = self._levels_of(stored, vendor)
        except Exception:
            self._slide.close()
            raise
        self.shapes = tuple(levels.values())
        self._stored = tuple(levels)
        colour = self.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)
        self.background = tuple(bytes.fromhex(colour)) if colour else WHITE
        self._downsamples = self._slide.level_downsamples
        self._blocks = {
            i: _Blocks(self._region, i, stored[i], self._downsamples[i])
            for i in self._stored
            if not is_exact(self._downsamples[i])
        }
        self._planes = None
        if vendor in _PLAIN_TIFFS:
            self._planes = DirectPlanes(path, stored, self._downsamples, self._sample)

    def _levels_of(self, stored, vendor):
        """{OpenSlide's level: (h, w)} of those that are levels of one slide."""
        tiles = [self._tile_size(i) for i in range(len(stored))]
        for shape, tile in zip(stored, tiles, strict=True):
            check_size(shape, tile)
        levels = pyramid_levels(stored, tiles)
        if vendor != "generic-tiff":
            return levels
        if (reason := _stack_axes(self._path)) is not None:
            raise ValueError(reason)
        kinds = collections.defaultdict(set)
        for image in read_directories(self._path):
            kinds[image.shape].add(image.kind)
        if kinds[stored[0]] == {_REDUCED}:
            raise ValueError("its widest image is a reduced one: a label or macro")
        usual = lambda shape: not kinds[shape] or kinds[shape] & {0, _REDUCED}
        return {i: shape for i, shape in levels.items() if usual(stored[i])}

    def _tile_size(self, level):
        """(h, w) of a level's tiles; (0, 0) where OpenSlide does not say."""
        name = f"openslide.level[{level}].tile-"
        return tuple(int(self.properties.get(name + n, 0)) for n in ("height", "width"))

    def _open(self):
        slide = openslide.OpenSlide(self._path)
        slide.set_cache(_shared_cache())
        return slide

    def read(
        self, level: int, y: int, x: int, h: int, w: int, out: np.ndarray | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        level = self._stored[level]
        plane = self._planes and self._planes.get(level)
        if plane is not None:
            try:
                return plane.read(y, x, h, w, out)
            except Exception:  # a tile missing or damaged is OpenSlide's to fill
                if level in self._blocks:
                    raise
        if level in self._blocks:
            return self._blocks[level].read(y, x, h, w, out)
        ds = round(self._downsamples[level])
        return self._region(level, y * ds, x * ds, h, w)

    def read_tiles(
        self,
        level: int,
        yx: Sequence[Sequence[int]],
        tiles: Sequence[UInt8[np.ndarray, "h w 3"]],
    ) -> None:
        stored = self._stored[level]
        plane = self._planes and self._planes.get(stored)
        if plane is not None:
            with contextlib.suppress(Exception):  # `read` knows what is to be done
                return plane.read_tiles(yx, tiles)
        super().read_tiles(level, yx, tiles)

    def _region(self, level, y, x, h, w):
        return flatten(self._slide.read_region((x, y), level, (w, h)), self.background)

    def _sample(self, *region):
        try:
            return self._region(*region)
        except openslide.OpenSlideError:
            self._slide = self._open()  # after an error it would refuse every read
            raise

    def close(self) -> None:
        self._slide.close()
        for blocks in self._blocks.values():
            blocks.close()
        if self._planes is not None:
            self._planes.close()


class _Blocks(Segments):
    """A level in blocks that OpenSlide reads, each always at the same place.

    Of a level whose downsample is not whole OpenSlide returns pixels moved by a part of
    one, by another part for another corner: reads that overlap would not agree.

    Args:
        region: (level, y, x in level-0 pixels, h, w) -> pixels.
        level: of OpenSlide.
        shape: (h, w) of it.
        downsample: of it.
    """

    def __init__(self, region, level, shape, downsample):
        super().__init__(shape, (_BLOCK_PX, _BLOCK_PX))
        self._region, self._level, self._downsample = region, level, downsample

    def _decode(self, index, out):
        y, x = (int(n) * _BLOCK_PX for n in divmod(index, self._columns))
        h, w = min(_BLOCK_PX, self._h - y), min(_BLOCK_PX, self._w - x)
        corner = round(y * self._downsample), round(x * self._downsample)
        out[:h, :w] = self._region(self._level, *corner, h, w)


class FlatReader(Reader):
    """PNG, JPEG and other flat images, by Pillow; decoded whole at the first read."""

    background = WHITE

    def __init__(self, path: str):
        self._path, self._image = path, Image.open(path)
        self._lock = threading.Lock()
        self._pixels = None
        reason = _not_8_bit(self._image, path) or _stack(self._image, path)
        if reason is not None:
            self._image.close()
            raise ValueError(reason)
        self.shapes = ((self._image.height, self._image.width),)
        # A flat image's dpi speaks of paper, not of glass: its mpp must be given.
        self.properties = {}

    def read(
        self, level: int, y: int, x: int, h: int, w: int, out: np.ndarray | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        with self._lock:
            if self._pixels is None:
                _check_jpeg(self._image, self._path)
                self._pixels = flatten(self._image.convert("RGBA"), self.background)
        return self._pixels[y : y + h, x : x + w].copy()

    def close(self) -> None:
        self._image.close()
        self._pixels = None


def _not_8_bit(image, path):
    """Why a Pillow image is not 8-bit colour, or None."""
    if image.mode not in _FLAT_MODES:
        return f"Pillow mode {image.mode}, not 8-bit colour"
    if image.format == "PNG":  # of 16 bits Pillow would silently keep the high byte
        with open(path, "rb") as file:
            bits = file.read(_PNG_BITS + 1)[_PNG_BITS]
        return f"{bits} bits a channel, not 8" if bits > 8 else None
    return None


def _stack(image, path):
    """Why a file is more than the one image that Pillow would show, or None."""
    if (n := getattr(image, "n_frames", 1)) > 1:
        return f"a stack of {n} images, not one"
    return _stack_axes(path) if image.format == "TIFF" else None


def _stack_axes(path):
    """Why a TIFF is a stack; some say so in their description alone."""
    with contextlib.suppress(Exception), tifffile.TiffFile(path) as tiff:
        axes = tiff.series[0].axes
        if set(axes) - set("YXS"):
            return f"a stack of images (axes {axes}), not one"
    return None


def _check_jpeg(image, path):
    """Raises ValueError for damaged JPEG, which Pillow would show without a word."""
    if image.format == "JPEG":
        jpeg.check(pathlib.Path(path).read_bytes())
    if image.format != "TIFF":
        return
    with tifffile.TiffFile(path) as tiff:
        if is_jpeg(page := tiff.pages[0]):
            segments = page.dataoffsets, page.databytecounts
            for data, _ in tiff.filehandle.read_segments(*segments):
                jpeg.check(data, page.jpegtables)


@functools.cache
def _shared_cache():
    return openslide.OpenSlideCache(_CACHE_BYTES)
