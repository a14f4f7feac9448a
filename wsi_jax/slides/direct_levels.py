"""Levels read from a TIFF's own tiles, once they are checked against OpenSlide.

OpenSlide composes each region anew on a canvas of its own, at several times the cost
of decoding it.
"""

import os
import threading
from collections.abc import Callable, Sequence

import numpy as np
import tifffile

from wsi_jax.slides.file_faults import is_transient
from wsi_jax.slides.tiff_reader import TiffLevel, is_jpeg, page_fault

# One for OpenSlide's interpolation, one for another build of the JPEG decoder.
_ROUNDING = 2
# (device, inode, time, size, level) of levels that agreed: files are opened again many
# times, and to compare takes far longer than to open. What did not agree is compared
# again: a disk may have failed for a moment.
_agreed: set[tuple[int, ...]] = set()


class DirectLevels:
    """The levels of one file that can be read directly, each checked at its first read.

    `shapes` (h, w) and `downsamples` are OpenSlide's of each level, and `region` reads
    by OpenSlide: (level, y, x in level-0 pixels, h, w) -> pixels.
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
        self._file, self._candidates, self._checked = None, None, {}
        self._contents = ()

    def get(self, level: int) -> TiffLevel | None:
        """A level to read directly; None where OpenSlide is to be used."""
        if level not in self._checked:
            with self._lock:
                if level not in self._checked:
                    self._checked[level] = self._check(level)
        return self._checked[level]

    def close(self) -> None:
        for candidate in (self._candidates or {}).values():
            candidate.close()
        if self._file is not None:
            os.close(self._file)

    def _check(self, level):
        if self._candidates is None:
            self._candidates = self._open()
        direct = self._candidates.get(level)
        if direct is None:
            return None
        key = *self._contents, level
        if key in _agreed or self._agrees(level, direct):
            _agreed.add(key)
            return direct
        # If one level disagrees, none of the file is read directly.
        self._checked = dict.fromkeys(range(len(self._shapes)))
        return None

    def _open(self):
        """{level: its TIFF page} of those that may be read directly."""
        try:
            with tifffile.TiffFile(self._path) as tiff:
                pages = {}
                for page in tiff.pages:
                    if page.is_tiled and not page_fault(page):
                        pages.setdefault(page.shape[:2], page)
                self._file = os.open(self._path, os.O_RDONLY)
                at = os.fstat(self._file)
                self._contents = at.st_dev, at.st_ino, at.st_mtime_ns, at.st_size
                return {
                    level: TiffLevel(pages[shape], self._file)
                    for level, shape in enumerate(self._shapes)
                    if shape in pages and self._suits(level, pages[shape])
                }
        except Exception as error:  # what OpenSlide opened may be odd for tifffile
            if is_transient(error):
                raise
            return {}

    def _suits(self, level, page):
        """Whether to read a level directly: for speed, or where OpenSlide interpolates.

        In the latter a missing tile, OpenSlide's to fill, would not fit in.
        """
        if is_exact(self._downsamples[level]):
            return is_jpeg(page)
        return all(page.databytecounts)

    def _agrees(self, level, direct):
        """Whether samples of a level are the same read both ways."""
        compared = 0
        downsample = self._downsamples[level]
        for y, x, h, w in direct.samples():
            at = [round(n * downsample) for n in (y, x)]
            (y, down), (x, right) = (divmod(n / downsample, 1) for n in at)
            try:
                ours = direct.read(int(y), int(x), h, w).astype(np.float32)
            except Exception as error:  # a damaged tile is OpenSlide's to refuse
                if is_transient(error):
                    raise
                continue
            try:
                theirs = self._region(level, *at, h - 1, w - 1)
            except Exception as error:
                if is_transient(error):
                    raise
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
