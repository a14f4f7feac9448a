"""Reads annotations and masks from outlines or images."""

import math
import os

import numpy as np
from jaxtyping import Bool
from PIL import Image

from wsi_jax.slides import annotations
from wsi_jax.slides.annotations import AnnotationError, Polygon
from wsi_jax.slides.geojson import read_geojson
from wsi_jax.slides.open_reader import open_reader
from wsi_jax.slides.reader_protocol import Reader, SlideError

# Mask pixels that are decoded at once: bounds memory per thread.
_CHUNK_PX = 1 << 24
# How much a mask's proportions may differ from the slide's before it is another's.
_SKEW = 0.03


def read_annotations(
    path: str | os.PathLike, bounds_yx: tuple[int, int] = (0, 0)
) -> list[Polygon]:
    """Reads ASAP XML or QuPath GeoJSON, whichever the file is by its first character.

    ASAP counts from the corner of the whole slide, QuPath from `bounds_yx`, that of the
    scanned area. AnnotationError: it is neither, or damaged.
    """
    first = _first(path)
    if first == b"<":
        return annotations.read_asap(path)
    if first in (b"{", b"["):
        return read_geojson(path, bounds_yx)
    raise AnnotationError(
        f"{path} is neither ASAP XML nor GeoJSON; export the annotations as one of them"
    )


def read_mask(
    path: str | os.PathLike,
    shape: tuple[int, int],
    mpp: float,
    slide_shape: tuple[int, int],
    slide_mpp: float,
    bounds_yx: tuple[int, int] = (0, 0),
) -> Bool[np.ndarray, "h w"]:
    """A slide's mask [h w] at `mpp`, from an image of any size or from outlines.

    An image covers the whole slide, whose level 0 has `slide_shape` and `slide_mpp`; a
    pixel of the result is set where at least half of what it covers is not 0 (of a
    colour image: not black). Outlines are filled, but for those of a group that means a
    hole; ASAP's "None", no group, is an area here.

    Args:
        path: PNG, TIFF (a pyramid too), ASAP XML or GeoJSON.
        bounds_yx: corner of the scanned area, as in `read_annotations`.

    AnnotationError: outlines that cannot be read, or are too intricate.
    SlideError: an image that cannot be read, or of other proportions.
    """
    if _first(path) in (b"<", b"{", b"["):
        polygons = read_annotations(path, bounds_yx)
        try:
            holes = annotations.HOLES - {"None"}
            return annotations.rasterise(polygons, shape, mpp, slide_mpp, holes)
        except AnnotationError as error:
            raise AnnotationError(f"{path}: {error}") from error
    reader = _open(path)
    try:
        _check_proportions(path, reader.level_shapes[0], slide_shape)
        finer = (np.array(reader.level_shapes) >= shape).all(1)
        level = max(0, int(finer.sum()) - 1)
        return _scaled(reader, level, shape, slide_shape, mpp / slide_mpp)
    except SlideError:
        raise
    except Exception as error:  # decoders raise whatever they like
        raise SlideError(
            f"{path} cannot be read as a mask ({error}); write it again"
        ) from error
    finally:
        reader.close()


class _Png:
    """A PNG's numbers, not its colours: a palette may paint 0 white."""

    def __init__(self, path):
        with Image.open(path) as image:
            bands = image.getbands()
            self._pixels = np.asarray(image)
        if "A" in bands:  # opacity says nothing
            self._pixels = self._pixels[..., :-1]
        self._pixels = self._pixels.reshape(*self._pixels.shape[:2], -1)
        self.level_shapes = (self._pixels.shape[:2],)

    def read_region(self, level, y, x, h, w):
        del level
        return self._pixels[y : y + h, x : x + w]

    def close(self):
        pass


def _first(path) -> bytes:
    """The first character of a file that is not blank."""
    start = annotations.read_start(path, 256)
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _open(path) -> Reader | _Png:
    try:
        if os.fspath(path).lower().endswith(".png"):
            return _Png(path)
        reader = open_reader(os.fspath(path))
    except Exception as error:
        raise SlideError(
            f"{path} cannot be opened as a mask; give an 8-bit PNG or TIFF, ASAP XML "
            f"or GeoJSON ({error})"
        ) from error
    reader.background = (0, 0, 0)  # what a sparse mask leaves out is 0
    return reader


def _check_proportions(path, shape, slide_shape):
    (h, w), (slide_h, slide_w) = shape, slide_shape
    # Rounding a small mask to whole pixels changes its proportions too.
    slack = _SKEW + 1 / h + 1 / w
    if abs(math.log(h * slide_w / (w * slide_h))) > slack:
        raise SlideError(
            f"{path} is {h} x {w} px and its slide {slide_h} x {slide_w} px: these are "
            "not the same proportions; give the slide's own mask"
        )


def _scaled(reader, level, shape, slide_shape, ratio):
    """Shrinks or enlarges a level by areas, some rows at a time.

    `ratio` is level-0 pixels of the slide to a pixel of the result.
    """
    h, w = reader.level_shapes[level]
    pitch_y, pitch_x = ratio * h / slide_shape[0], ratio * w / slide_shape[1]
    right = shape[1] * pitch_x
    out = np.empty(shape, bool)
    step = max(1, int(_CHUNK_PX / (w * pitch_y)))
    for top in range(0, shape[0], step):
        bottom = min(top + step, shape[0])
        low, high = top * pitch_y, bottom * pitch_y
        first = min(int(low), h - 1)
        last = max(first + 1, min(math.ceil(high), h))
        rows = reader.read_region(level, first, 0, last - first, w).any(-1)
        # The result may overhang by part of a pixel: sizes are rounded.
        beyond = (max(0, math.ceil(high) - last), max(0, math.ceil(right) - w))
        rows = np.pad(rows, [(0, n) for n in beyond], mode="edge")
        image = Image.fromarray(rows.astype(np.uint8) * 255)
        end = min(right, image.width), min(high - first, image.height)
        size, box = (shape[1], bottom - top), (0, low - first, *end)
        resized = image.resize(size, Image.Resampling.BOX, box=box)
        out[top:bottom] = np.asarray(resized) > 127
    return out
