"""One slide on disk, read anywhere at any resolution given in um/px."""

import contextlib
import math
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from wsi_jax.slides import handles, limits
from wsi_jax.slides.halving import halve
from wsi_jax.slides.readers import SlideError, open_reader
from wsi_jax.slides.resolution import (
    MppError,
    bounds_yx,
    contradiction,
    downsample,
    resolve_mpp,
)

MAX_UPSAMPLING = 1.25
# A level this little coarser than asked still counts as finer.
_HAIR = 1e-3
# Over the whole slide, less than this many pixels of drift is no drift.
_NATIVE_PX = 0.05
# Source pixels a side that are decoded at once: bounds memory per thread.
_CHUNK_PX = 2048
_EXTENSIONS = (
    *(".ome.tiff", ".ome.tif", ".tiff", ".tif", ".svs", ".ndpi", ".mrxs", ".dcm"),
    *(".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".zvi", ".isyntax"),
    *(".png", ".jpeg", ".jpg", ".bmp"),
)


class Level(NamedTuple):
    """One stored resolution: (h, w) in its pixels, um/px."""

    shape: tuple[int, int]
    mpp: float


class Slide:
    """One slide; safe to share between threads, cheap to hold, pickled as its path.

    Make it with `open_slide`. Files are opened when read and kept among a bounded
    number of open ones (`handles.py`).

    Attributes:
        path: of the file.
        slide_id: its name without a slide's extension.
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

    def __init__(self, path, key, given_mpp, reader):
        self.path = pathlib.Path(path)
        self.slide_id = known_stem(path)
        self.mpp, self.mpp_source = resolve_mpp(
            self.slide_id, reader.properties, given_mpp, reader.shapes[0]
        )
        self.mpp_note = contradiction(
            self.mpp, self.mpp_source, reader.properties, reader.shapes[0]
        )
        self.shape = reader.shapes[0]
        self.levels = tuple(
            Level(shape, self.mpp * downsample(self.shape, shape))
            for shape in reader.shapes
        )
        self.bounds_yx = bounds_yx(reader.properties)
        self.background = reader.background
        stated = "openslide.background-color" in reader.properties
        self.fill_rgb = reader.background if stated else None
        self.bytes_decoded = 0
        self._given_mpp = given_mpp
        self._key = key
        self._lock = threading.Lock()

    def __reduce__(self):
        return open_slide, (self.path, self._given_mpp)

    def __repr__(self):
        h, w = self.shape
        return f"Slide({self.slide_id}, {h} x {w} px at {self.mpp:.4g} um/px)"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Closes the file; a later read opens it again."""
        handles.close(self._key)

    def shape_at(self, mpp: float) -> tuple[int, int]:
        """(h, w) of the whole slide at `mpp`: the pixels whose centre is on it."""
        return tuple(max(1, _centres(n * self.mpp / mpp)) for n in self.shape)

    def overview(self, mpp: float) -> UInt8[np.ndarray, "h w 3"]:
        """The whole slide at `mpp`, antialiased; its shape is `shape_at(mpp)`.

        Raises:
            SlideError: as `read`, or it would be too large to be held.
        """
        h, w = self.shape_at(mpp)
        if h * w > limits.OVERVIEW_PX:
            raise SlideError(
                f"{self.slide_id}: the whole slide at {mpp:g} um/px would be {h} x {w} "
                f"px; the limit is {limits.OVERVIEW_PX} px. Mend its um/px, raise "
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
            mpp: um/px of the result.
            out: where the result goes, and is returned; else to new memory.

        Raises:
            SlideError: `mpp` needs more than 1.25x upsampling, the file is damaged
                there, or whatever else stands in the way.
        """
        with _refusal(self.slide_id, self.path):
            return self._read(yx, size_px, mpp, out)

    def _read(self, yx, size_px, mpp, out):
        h, w = size_px if np.ndim(size_px) else (size_px, size_px)
        y, x = map(float, yx)
        index, ratio = self._level_for(mpp)
        h, w = int(h), int(w)
        top, bottom = _on_slide(y, h, self.shape[0] * self.mpp / mpp)
        left, right = _on_slide(x, w, self.shape[1] * self.mpp / mpp)
        step = max(1, int(_CHUNK_PX / ratio))
        inside = (top, bottom, left, right) == (0, h, 0, w)
        if inside and min(h, w) > 0 and max(h, w) <= step:
            pixels = self._resample(index, ratio, (y, x), (h, w), out)
            if out is None or pixels is out:
                return pixels
            out[:] = pixels
            return out
        if out is None:
            out = np.empty((h, w, 3), np.uint8)
        if not inside:
            out[:] = self.background
        for i in range(top, bottom, step):
            for j in range(left, right, step):
                part = min(step, bottom - i), min(step, right - j)
                pixels = self._resample(index, ratio, (y + i, x + j), part)
                out[i : i + part[0], j : j + part[1]] = pixels
        return out

    def read_tiles(
        self,
        yx: Int[np.ndarray, "n 2"],
        mpp: float,
        tiles: Sequence[UInt8[np.ndarray, "h w 3"]],
    ) -> list[SlideError | None]:
        """Rectangles of one size, each as `read` reads it.

        At a level's own mpp it is faster for neighbours: what several of them touch is
        decoded once.

        Args:
            yx: top-left corners in pixels at `mpp`.
            mpp: um/px of the result.
            tiles: where the results go.

        Returns:
            For each the error that `read` raises, or None.
        """
        index, ratio = self._level_for(mpp)
        limits = np.minimum(self.levels[index].shape, self.shape_at(mpp))
        last = limits - tiles[0].shape[:2]
        if ratio == 1 and (yx >= 0).all() and (yx <= last).all():
            with contextlib.suppress(Exception), self._reader() as reader:
                reader.read_tiles(index, yx.tolist(), tiles)
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

    def _resample(self, index, ratio, yx, size, out=None):
        y, x = whole = tuple(map(round, yx))
        if ratio == 1 and math.dist(yx, whole) < 1e-3:
            return self._pixels(index, whole, size, out)
        if ratio == 2 and (y, x) == yx:
            h, w = size
            out = np.empty((h, w, 3), np.uint8) if out is None else out
            around = self._pixels(index, (2 * y - 1, 2 * x - 1), (2 * h + 2, 2 * w + 2))
            return halve(around, out)
        # The filter reaches one output pixel (or one source pixel) beyond its centre.
        support = max(1.0, ratio)
        start = tuple(at * ratio for at in yx)
        stop = tuple((at + n) * ratio for at, n in zip(yx, size, strict=True))
        origin = tuple(math.floor(at - support) for at in start)
        extent = tuple(
            math.ceil(at + support) - o for at, o in zip(stop, origin, strict=True)
        )
        image = Image.fromarray(self._pixels(index, origin, extent))
        (top, left), (bottom, right) = np.subtract((start, stop), origin)
        box = (left, top, right, bottom)
        return np.array(image.resize(size[::-1], Image.Resampling.BILINEAR, box=box))

    def _pixels(self, index, yx, size, out=None):
        """Stored pixels of a level; its outermost are repeated beyond its edges."""
        # A level may lack the last row or column of the slide: writers round down.
        limits = self.levels[index].shape
        y, x = (min(max(at, 0), n - 1) for at, n in zip(yx, limits, strict=True))
        bottom, right = (
            min(max(at + n, 1), limit)
            for at, n, limit in zip(yx, size, limits, strict=True)
        )
        h, w = bottom - y, right - x
        if (h, w) == size:
            return self._decode((index, y, x, h, w), out)
        pixels = self._decode((index, y, x, h, w))
        rows, cols = (
            np.clip(np.arange(n) + at - first, 0, there - 1)
            for at, n, first, there in zip(yx, size, (y, x), (h, w), strict=True)
        )
        return pixels[np.ix_(rows, cols)]

    def _decode(self, region, out=None):
        try:
            with self._reader() as reader:
                pixels = reader.read(*region, out)
        except Exception:
            pixels = self._decode_alone(region)
        self._count(pixels.size)
        return pixels

    @contextlib.contextmanager
    def _reader(self):
        """The open file; one that has failed is not used again."""
        with handles.lease(self._key) as handle:
            try:
                yield handle.reader
            except Exception:  # decoders raise whatever they like
                handles.retire(handle)
                raise

    def _count(self, decoded):
        with self._lock:
            self.bytes_decoded += decoded

    def _decode_alone(self, region):
        """Reads once more with a handle of its own, which no other thread's bad tile
        can have poisoned."""
        level, y, x, h, w = region
        reader = open_reader(self._key[0])
        try:
            return reader.read(*region)
        except Exception as error:
            raise SlideError(
                f"{self.slide_id}: level {level} cannot be read at (y, x) = ({y}, {x}),"
                f" {h} x {w} px: {error}. Copy {self.path} again, or leave it out"
            ) from error
        finally:
            reader.close()


def open_slide(path: str | os.PathLike, mpp: float | None = None) -> Slide:
    """Opens a slide that OpenSlide, tifffile or Pillow can read.

    Args:
        path: of the file.
        mpp: um/px of level 0 from the manifest; wins over what the file says.

    Raises:
        SlideError: no such file, not a slide, pixels not square, or no mpp: neither
            given, nor in an OME-XML, nor a slide property, nor in the TIFF resolution
            tags.
    """
    path = os.fspath(path)
    key = handles.key_of(path)
    with _refusal(known_stem(path), path), handles.lease(key) as handle:
        return Slide(path, key, mpp, handle.reader)


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
            f"{slide_id}: cannot be read ({type(error).__name__}: {error}). Copy "
            f"{path} again, or leave it out"
        ) from error


def says_mpp(path: str | os.PathLike) -> bool:
    """Whether a file tells its um/px; so do those that cannot be opened at all."""
    try:
        open_slide(path).close()
    except MppError:
        return False
    except SlideError:
        return True
    return True


def known_stem(path: str | os.PathLike) -> str:
    """The slide_id of a path: its name less a slide's extension.

    Other suffixes stay, for names hold dots (TCGA-...-DX1.d4ff32cd-....svs).
    """
    name = os.path.basename(os.fspath(path))
    for extension in _EXTENSIONS:
        if name.lower().endswith(extension):
            return name[: -len(extension)]
    return name


def _centres(edge):
    """How many of the pixel centres 0.5, 1.5, ... lie before `edge`."""
    return math.ceil(edge - 0.5)


def _on_slide(at, n, extent):
    """Of `n` pixels from `at` on, the first and the end of those on [0, extent)."""
    return tuple(min(max(_centres(edge - at), 0), n) for edge in (0, extent))
