"""Levels read from a TIFF's own tiles, once they are seen to be what OpenSlide reads.

OpenSlide composes each region anew on a canvas of its own, at several times the cost
of decoding it.
"""

import os
import threading
from collections.abc import Callable, Sequence

import numpy as np
import tifffile

from wsi_jax.slides.tiff_reader import Plane, is_jpeg, unreadable

# One for OpenSlide's interpolation, one for another build of the JPEG decoder.
_ROUNDING = 2
# Levels that were seen to agree, by what their file is: files are opened again many
# times, and to compare takes far longer than to open. What did not agree is compared
# again: a disk may have failed for a moment.
_agreed: set[tuple[int, ...]] = set()


class DirectPlanes:
    """The levels of one file that can be read so, each proved when first read.

    Args:
        path: of the file.
        shapes: (h, w) of each level.
        downsamples: of each level, OpenSlide's.
        region: OpenSlide's way: (level, y, x in level-0 pixels, h, w) -> pixels.
    """

    def __init__(
        self,
        path: str,
        shapes: Sequence[tuple[int, int]],
        downsamples: Sequence[float],
        region: Callable[..., np.ndarray],
    ):
        self._path, self._shapes, self._downsamples = path, shapes, downsamples
        self._region, self._lock = region, threading.Lock()
        self._file, self._found, self._proved = None, None, {}
        self._contents = ()

    def get(self, level: int) -> Plane | None:
        """The plane of a level; None where OpenSlide is to be used."""
        if level not in self._proved:
            with self._lock:
                if level not in self._proved:
                    self._proved[level] = self._prove(level)
        return self._proved[level]

    def close(self) -> None:
        for plane in (self._found or {}).values():
            plane.close()
        if self._file is not None:
            os.close(self._file)

    def _prove(self, level):
        if self._found is None:
            self._found = self._find()
        plane = self._found.get(level)
        if plane is None:
            return None
        key = *self._contents, level
        if key in _agreed or self._agrees(level, plane):
            _agreed.add(key)
            return plane
        # A file that is not what it says once is not believed again.
        self._proved = dict.fromkeys(range(len(self._shapes)))
        return None

    def _find(self):
        try:
            with tifffile.TiffFile(self._path) as tiff:
                pages = {}
                for page in tiff.pages:
                    if page.is_tiled and unreadable(page) is None:
                        pages.setdefault(page.shape[:2], page)
                wanted = {
                    level: pages[shape]
                    for level, shape in enumerate(self._shapes)
                    if shape in pages and self._suits(level, pages[shape])
                }
                self._file = os.open(self._path, os.O_RDONLY)
                at = os.fstat(self._file)
                self._contents = at.st_dev, at.st_ino, at.st_mtime_ns, at.st_size
                return {i: Plane(page, self._file) for i, page in wanted.items()}
        except Exception:  # what OpenSlide opened may still be too odd for tifffile
            return {}

    def _suits(self, level, page):
        """Whether to read a level so: for speed, or where OpenSlide would interpolate.

        In the latter a missing tile, OpenSlide's to fill, would not fit in.
        """
        if is_exact(self._downsamples[level]):
            return is_jpeg(page)
        return all(page.databytecounts)

    def _agrees(self, level, plane):
        """Whether samples of a level are the same read both ways."""
        compared = 0
        for y, x, h, w in plane.samples():
            at = [round(n * self._downsamples[level]) for n in (y, x)]
            (y, down), (x, right) = (
                divmod(n / self._downsamples[level], 1) for n in at
            )
            try:
                ours = plane.read(int(y), int(x), h, w).astype(np.float32)
            except Exception:  # a damaged tile is OpenSlide's to read or to refuse
                continue
            try:
                theirs = self._region(level, *at, h - 1, w - 1)
            except Exception:
                return False
            ours = ours[:-1] * (1 - down) + ours[1:] * down
            ours = ours[:, :-1] * (1 - right) + ours[:, 1:] * right
            if np.abs(ours - theirs).max() > _ROUNDING:
                return False
            compared += 1
        return compared > 0


def is_exact(downsample: float) -> bool:
    """Whether OpenSlide can return the stored pixels of a level anywhere."""
    return downsample == round(downsample)
