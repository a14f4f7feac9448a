"""One slide, read anywhere at any resolution given in um/px."""

import contextlib
import functools
import math
import os
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from wsi_jax.slides import mpp_metadata, reader_pool, size_limits
from wsi_jax.slides.file_faults import mend, read_file
from wsi_jax.slides.find_levels import downsample
from wsi_jax.slides.open_reader import open_reader
from wsi_jax.slides.reader_protocol import Reader, SlideError, is_url
from wsi_jax.slides.resampling import edge_padded, resample
from wsi_jax.slides.slide_id import slide_id_of

MAX_UPSAMPLING = 1.25
# A level this little coarser than asked still counts as finer.
_HAIR = 1e-3
# Over the whole slide, less than this many pixels of drift is no drift.
_NATIVE_PX = 0.05
# Source pixels a side that are decoded at once: bounds memory per thread.
_CHUNK_PX = 2048


class Level(NamedTuple):
    """One stored resolution: (h, w) in its pixels, um/px."""

    shape: tuple[int, int]
    mpp: float


class Slide:
    """One slide; safe to share between threads, cheap to hold, pickled as its path.

    Made by `open_slide`. Files are opened when read and kept among a bounded number of
    open ones (`reader_pool.py`).

    Attributes:
        path: name of the file, or a URL.
        slide_id: the file's name without a slide's extension.
        mpp: um/px of level 0.
        mpp_source: "manifest", "ome", "property" or "tiff".
        mpp_note: what in the file contradicts `mpp` by more than 5 %, or "".
        shape: (h, w) of level 0.
        levels: finest first.
        bounds_yx: corner of the scanned area, (y, x) in level-0 pixels: QuPath counts
            from there.
        background: RGB of places that were never scanned or lie outside the slide.
        fill_rgb: the same, where the file itself states it; else None.
        bytes_decoded: uncompressed RGB bytes read from levels so far.
    """

    def __init__(self, path: str, key, given_mpp, reader: Reader):
        self.path = path if is_url(path) else pathlib.Path(path)
        self.slide_id = slide_id_of(path)
        self.shape = reader.level_shapes[0]
        self.mpp, self.mpp_source = mpp_metadata.resolve_mpp(
            self.slide_id, reader.properties, given_mpp, self.shape
        )
        self.mpp_note = mpp_metadata.contradiction(
            self.mpp, self.mpp_source, reader.properties, self.shape
        )
        self.levels = tuple(
            Level(shape, self.mpp * downsample(self.shape, shape))
            for shape in reader.level_shapes
        )
        self.bounds_yx = mpp_metadata.bounds_yx(reader.properties)
        self.background = reader.background
        stated = "openslide.background-color" in reader.properties
        self.fill_rgb = reader.background if stated else None
        self.bytes_decoded = 0
        self._given_mpp = given_mpp
        self._key = key
        self._lock = threading.Lock()

    def __reduce__(self):
        return open_slide, (self.path, self._given_mpp, self._key.open_reader)

    def __repr__(self):
        h, w = self.shape
        return f"Slide({self.slide_id}, {h} x {w} px at {self.mpp:.4g} um/px)"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Closes the file; a later read opens it again."""
        reader_pool.close(self._key)

    def shape_at(self, mpp: float) -> tuple[int, int]:
        """(h, w) of the whole slide at `mpp`: the pixels whose centre is on it."""
        return shape_at(self.shape, self.mpp, mpp)

    def overview(self, mpp: float) -> UInt8[np.ndarray, "h w 3"]:
        """The whole slide at `mpp`, antialiased; its shape is `shape_at(mpp)`.

        SlideError: as `read`, or it would not fit in memory.
        """
        h, w = self.shape_at(mpp)
        if h * w > size_limits.OVERVIEW_PX:
            raise SlideError(
                f"{self.slide_id}: the whole slide at {mpp:g} um/px would be {h} x {w} "
                f"px; the limit is {size_limits.OVERVIEW_PX} px. Mend its um/px, raise "
                "--config.tissue.mpp, or leave the slide out"
            )
        return self.read((0, 0), (h, w), mpp)

    def read(
        self,
        yx: Sequence | np.ndarray,
        size_px: int | np.integer | Sequence,
        mpp: float,
        out: UInt8[np.ndarray, "h w 3"] | None = None,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """A rectangle of the slide at exactly `mpp`.

        The coarsest level at least as fine as `mpp` is resampled by an antialiased
        bilinear filter. At a level's own mpp and whole coordinates the stored pixels
        come back untouched. All reads at one mpp are cut from one plane: neighbours
        agree (to one grey level where the ratio is not dyadic). Places outside the
        slide have its `background` (white unless the file says otherwise, fluorescence
        included: only pixels that were scanned stay black).

        Args:
            yx: top-left corner in pixels at `mpp`, whole or not.
            size_px: height and width in pixels at `mpp`, or one number for both.
            out: where the result goes, and is returned; else to new memory.

        SlideError: `mpp` needs more than 1.25x upsampling, the file is damaged
        there, or whatever else stands in the way.
        """
        with _refusal(self.slide_id, self.path):
            return self._read(yx, size_px, mpp, out)

    def _read(self, yx, size_px, mpp, out):
        h, w = map(int, size_px if np.ndim(size_px) else (size_px, size_px))
        y, x = map(float, yx)
        index, ratio = self._level_for(mpp)
        stored = functools.partial(self._stored, index)
        if out is None:
            out = np.empty((h, w, 3), np.uint8)
        top, bottom = _on_slide(y, h, self.shape[0] * self.mpp / mpp)
        left, right = _on_slide(x, w, self.shape[1] * self.mpp / mpp)
        if (top, bottom, left, right) != (0, h, 0, w):
            out[:] = self.background
        step = max(1, int(_CHUNK_PX / ratio))
        for i in range(top, bottom, step):
            for j in range(left, right, step):
                part = out[i : min(i + step, bottom), j : min(j + step, right)]
                at = y + i, x + j
                pixels = resample(stored, ratio, at, part.shape[:2], part)
                if pixels is not part:
                    part[:] = pixels
        return out

    def read_tiles(
        self,
        yx: Int[np.ndarray, "n 2"],
        mpp: float,
        tiles: Sequence[UInt8[np.ndarray, "h w 3"]],
    ) -> list[SlideError | None]:
        """Rectangles of one size to `tiles`, each as `read` reads it at corners `yx`.

        At a level's own mpp it is faster for neighbours: what several of them touch is
        decoded once. Returns for each the error that `read` raises, or None.
        """
        index, ratio = self._level_for(mpp)
        end = np.minimum(self.levels[index].shape, self.shape_at(mpp))
        last = end - tiles[0].shape[:2]
        if ratio == 1 and (yx >= 0).all() and (yx <= last).all():
            with contextlib.suppress(Exception):
                reader_pool.read_regions(self._key, index, yx.tolist(), tiles)
                self._count(sum(tile.size for tile in tiles))
                return [None] * len(tiles)
        return [self._error(at, mpp, tile) for at, tile in zip(yx, tiles, strict=True)]

    def _error(self, yx, mpp, tile):
        try:
            self.read(yx, tile.shape[:2], mpp, tile)
        except SlideError as error:
            return error

    def _level_for(self, mpp):
        """Index of the level to read for `mpp`, and its pixels per pixel at `mpp`."""
        finest = self.levels[0].mpp
        if mpp * MAX_UPSAMPLING < finest * (1 - _HAIR):
            raise SlideError(
                f"{self.slide_id}: {mpp:g} um/px was asked for, its finest level has "
                f"{finest:g}: upsampling {finest / mpp:.2f}x, more than "
                f"{MAX_UPSAMPLING}x. Set --config.grid.mpp to {finest:g} or coarser, "
                "or leave the slide out"
            )
        finer = [i for i, one in enumerate(self.levels) if one.mpp <= mpp * (1 + _HAIR)]
        index = finer[-1] if finer else 0
        level = self.levels[index]
        ratio = mpp / level.mpp
        native = abs(ratio - 1) * max(level.shape) < _NATIVE_PX
        return index, 1.0 if native else ratio

    def _stored(self, index, yx, size, out=None):
        # A level may lack the last row or column of the slide: writers round down.
        decode = functools.partial(self._decode, index)
        return edge_padded(decode, self.levels[index].shape, yx, size, out)

    def _decode(self, level, y, x, h, w, out=None):
        try:
            pixels = reader_pool.read_region(self._key, level, y, x, h, w, out)
        except SlideError:
            raise
        except Exception as error:
            raise SlideError(
                f"{self.slide_id}: level {level} cannot be read at (y, x) = ({y}, {x}),"
                f" {h} x {w} px: {error}. {mend(error, self.path)}"
            ) from error
        self._count(pixels.size)
        return pixels

    def _count(self, decoded):
        with self._lock:
            self.bytes_decoded += decoded


def open_slide(
    path: str | os.PathLike,
    mpp: float | None = None,
    open_reader: Callable[[str], Reader] = open_reader,
) -> Slide:
    """Opens a slide that OpenSlide, tifffile or Pillow can read, or `open_reader` can.

    Args:
        path: name of the file; a URL where `open_reader` takes one.
        mpp: um/px of level 0 from the manifest; wins over what the file says.
        open_reader: path -> Reader, for other formats and remote files. Importable,
            so that slides can be pickled.

    SlideError: no such file, not a slide, pixels not square, or no mpp: neither
    given, nor in an OME-XML, nor a slide property, nor in the TIFF resolution
    tags.
    """
    path = os.fspath(path)

    def read():
        key = reader_pool.key_of(path, open_reader)
        with reader_pool.lease(key) as reader:
            return Slide(path, key, mpp, reader)

    with _refusal(slide_id_of(path), path):
        return read_file(path if is_url(path) else os.path.abspath(path), read)


def shape_at(shape: tuple[int, int], mpp: float, other: float) -> tuple[int, int]:
    """(h, w) at `other` um/px of a slide of `shape` at `mpp`: see `Slide.shape_at`."""
    return tuple(max(1, _centres_before(n * mpp / other)) for n in shape)


@contextlib.contextmanager
def _refusal(slide_id, path):
    """Whatever a slide makes decoders, or memory, raise is a SlideError that names it:
    one slide stops no other."""
    try:
        yield
    except SlideError:
        raise
    except Exception as error:
        raise SlideError(
            f"{slide_id}: cannot be read ({type(error).__name__}: {error}). "
            f"{mend(error, path)}"
        ) from error


def has_mpp(path: str | os.PathLike) -> bool:
    """Whether a file states its um/px; True too for one that cannot be opened."""
    with contextlib.suppress(SlideError):
        try:
            open_slide(path).close()
        except mpp_metadata.MppError:
            return False
    return True


def _centres_before(edge):
    """Number of pixel centres 0.5, 1.5, ... before `edge`."""
    return math.ceil(edge - 0.5)


def _on_slide(at, n, extent):
    """First and end of those of `n` pixels from `at` on that lie on [0, extent)."""
    return tuple(min(max(_centres_before(edge - at), 0), n) for edge in (0, extent))
