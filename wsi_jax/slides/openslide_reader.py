"""Slides that OpenSlide opens: SVS, NDPI, MRXS, DICOM, tiled TIFF and others."""

import collections
import contextlib
import functools
from collections.abc import Sequence

import numpy as np
import openslide
from jaxtyping import UInt8

from wsi_jax.slides.chunked_level import ChunkedLevel
from wsi_jax.slides.direct_levels import DirectLevels, is_exact
from wsi_jax.slides.file_checks import check_size
from wsi_jax.slides.file_faults import is_transient
from wsi_jax.slides.find_levels import pyramid_levels
from wsi_jax.slides.reader_protocol import WHITE, Reader, flatten
from wsi_jax.slides.tiff_directories import read_directories
from wsi_jax.slides.tiff_reader import stack_fault

# One cache of decoded tiles for all OpenSlide handles; a private one each would grow
# with the number of open slides.
_CACHE_BYTES = 128 * 2**20
# OpenSlide's names of the TIFFs whose levels are each one page of tiles.
_PLAIN_TIFFS = ("aperio", "generic-tiff", "philips")
# Beyond a block's edge a level may go on a part of a pixel aside: few edges, then.
_BLOCK_PX = 512
_REDUCED = 1  # TIFF's NewSubfileType


class OpenSlideReader(Reader):
    """A file that OpenSlide opens.

    Tiles of JPEG in a TIFF (Aperio, generic, Philips) are decoded directly from the
    file, once that is checked to give OpenSlide's pixels; OpenSlide reads the rest.

    OpenSlide takes level-0 integers and divides them by a downsample it averages from
    the level sizes (4.002 where the writer meant 4), so at most places of such a level
    it can only return pixels interpolated between the stored ones. Those levels are
    read from the TIFF itself whatever their compression, if tifffile decodes it;
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
        self.level_shapes = tuple(levels.values())
        self._stored = tuple(levels)
        colour = self.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)
        self.background = tuple(bytes.fromhex(colour)) if colour else WHITE
        self._downsamples = self._slide.level_downsamples
        self._blocks = {
            i: _Blocks(self._region, i, stored[i], self._downsamples[i])
            for i in self._stored
            if not is_exact(self._downsamples[i])
        }
        self._direct = None
        if vendor in _PLAIN_TIFFS:
            self._direct = DirectLevels(path, stored, self._downsamples, self._sample)

    def _levels_of(self, stored, vendor):
        """{OpenSlide's level: (h, w)} of those that are levels of one slide."""
        tiles = [self._tile_size(i) for i in range(len(stored))]
        for shape, tile in zip(stored, tiles, strict=True):
            check_size(shape, tile)
        levels = pyramid_levels(stored, tiles)
        if vendor != "generic-tiff":
            return levels
        if fault := stack_fault(self._path):
            raise ValueError(fault)
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

    def read_region(
        self, level: int, y: int, x: int, h: int, w: int, out: np.ndarray | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        level = self._stored[level]
        direct = self._direct and self._direct.get(level)
        if direct is not None:
            try:
                return direct.read(y, x, h, w, out)
            except Exception as error:  # a damaged tile is OpenSlide's to fill
                if level in self._blocks or is_transient(error):
                    raise
        if level in self._blocks:
            return self._blocks[level].read(y, x, h, w, out)
        ds = round(self._downsamples[level])
        return self._region(level, y * ds, x * ds, h, w)

    def read_regions(
        self,
        level: int,
        corners: Sequence[Sequence[int]],
        outs: Sequence[UInt8[np.ndarray, "h w 3"]],
    ) -> None:
        direct = self._direct and self._direct.get(self._stored[level])
        if direct is not None:
            with contextlib.suppress(Exception):  # `read_region` mends or raises
                return direct.read_many(corners, outs)
        super().read_regions(level, corners, outs)

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
        if self._direct is not None:
            self._direct.close()


class _Blocks(ChunkedLevel):
    """A level that OpenSlide reads in blocks with fixed corners.

    Of a level whose downsample is not whole OpenSlide returns pixels moved by a part of
    one, by another part for another corner: reads that overlap would not agree.
    `region` is (level, y, x in level-0 pixels, h, w) -> pixels.
    """

    def __init__(self, region, level, shape, downsample):
        super().__init__(shape, (_BLOCK_PX, _BLOCK_PX))
        self._region, self._level, self._downsample = region, level, downsample

    def _decode(self, index, out):
        y, x = (int(n) * _BLOCK_PX for n in divmod(index, self._columns))
        h, w = min(_BLOCK_PX, self._h - y), min(_BLOCK_PX, self._w - x)
        corner = round(y * self._downsample), round(x * self._downsample)
        out[:h, :w] = self._region(self._level, *corner, h, w)


@functools.cache
def _shared_cache():
    return openslide.OpenSlideCache(_CACHE_BYTES)
