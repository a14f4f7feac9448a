"""Flat images as slides of one level: PNG, JPEG, BMP and others, by Pillow."""

import pathlib
import threading

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image

from wsi_jax.slides import strict_jpeg
from wsi_jax.slides.reader_protocol import WHITE, Reader, flatten
from wsi_jax.slides.tiff_reader import is_jpeg, stack_fault

_PNG_BITS = 24  # where a PNG says how many bits a channel has
_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}


class FlatReader(Reader):
    """A flat image, decoded whole at the first read."""

    background = WHITE

    def __init__(self, path: str):
        self._path, self._image = path, Image.open(path)
        self._lock = threading.Lock()
        self._pixels = None
        if fault := _fault(self._image, path):
            self._image.close()
            raise ValueError(fault)
        self.level_shapes = ((self._image.height, self._image.width),)
        # A flat image's dpi speaks of paper, not of glass: its mpp must be given.
        self.properties = {}

    def read_region(
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


def _fault(image, path):
    """Why a file is not one image of 8-bit colour, or ""."""
    if image.mode not in _MODES:
        return f"Pillow mode {image.mode}, not 8-bit colour"
    if image.format == "PNG":  # of 16 bits Pillow would silently keep the high byte
        with open(path, "rb") as file:
            bits = file.read(_PNG_BITS + 1)[_PNG_BITS]
        if bits > 8:
            return f"{bits} bits a channel, not 8"
    if (n := getattr(image, "n_frames", 1)) > 1:
        return f"a stack of {n} images, not one"
    return stack_fault(path) if image.format == "TIFF" else ""


def _check_jpeg(image, path):
    """Raises ValueError for damaged JPEG, which Pillow would show without a word."""
    if image.format == "JPEG":
        strict_jpeg.check(pathlib.Path(path).read_bytes())
    if image.format != "TIFF":
        return
    with tifffile.TiffFile(path) as tiff:
        if is_jpeg(page := tiff.pages[0]):
            segments = page.dataoffsets, page.databytecounts
            for data, _ in tiff.filehandle.read_segments(*segments):
                strict_jpeg.check(data, page.jpegtables)
