"""Reads the image directories (IFDs) of a TIFF, bounded, before any library does.

TIFF 6.0 (1992), section 2; BigTIFF has offsets of 8 bytes, and so has Hamamatsu's NDPI,
whose tags are those of a small TIFF with the upper halves of their offsets after them.
"""

import os
import struct
from typing import BinaryIO, NamedTuple

from wsi_jax.slides import size_limits

# Codes of tags: NewSubfileType, ImageWidth, ImageLength, BitsPerSample,
# PhotometricInterpretation, SamplesPerPixel, TileWidth, TileLength, ExtraSamples.
_KIND, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES = 254, 256, 257, 258, 262, 277
_TILE_WIDTH, _TILE_HEIGHT, _EXTRA = 322, 323, 338
_SUB_DIRECTORIES, _NDPI = 330, 65420
_MISSING = {_BITS: (1,), _PHOTOMETRIC: (1,), _SAMPLES: (1,), _EXTRA: ()}
_TAGS = {_KIND, _WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _SUB_DIRECTORIES, *_MISSING}
_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


class Directory(NamedTuple):
    """One image of a TIFF."""

    kind: int  # NewSubfileType: 1 a reduced image, 2 a page of many, 4 a mask
    shape: tuple[int, int]  # (h, w) in pixels
    tile: tuple[int, int]  # (h, w) of its tiles; (0, 0) where it has strips
    bits: tuple[int, ...]  # of each sample
    samples: int  # of a pixel
    photometric: int  # 1 grey, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr
    extra: tuple[int, ...]  # each further sample: 1 or 2 opacity, 0 anything


class _Layout(NamedTuple):
    """How the numbers of a file are stored: the order of bytes and struct's letters."""

    order: str
    count: str  # of tags in a directory
    offset: str
    following: str  # offset of the next directory
    ndpi: bool = False

    def unpack(self, file: BinaryIO, at: int, letters: str) -> tuple[int, ...]:
        try:
            file.seek(at)
        except (OSError, OverflowError) as error:  # no file is as long
            raise struct.error(str(error)) from error
        letters = self.order + letters
        return struct.unpack(letters, file.read(struct.calcsize(letters)))


def read_directories(path: str | os.PathLike) -> list[Directory]:
    """All images of a TIFF; none of other files. A chain that breaks off ends there.

    ValueError: the directories go in a circle, or more than `size_limits` allows.
    """
    with open(path, "rb") as file:
        layout, first = _start(file)
        if layout is None:
            return []
        directories, visited, waiting = [], set(), [first]
        while waiting:
            at = waiting.pop()
            while at:
                if at in visited:
                    raise ValueError("its image directories go in a circle")
                if len(visited) == size_limits.DIRECTORIES:
                    raise ValueError(
                        f"more than {size_limits.DIRECTORIES} image directories"
                    )
                visited.add(at)
                try:
                    tags, following = _read(file, layout, at)
                except struct.error:  # the file ends before
                    break
                directories.append(_directory(tags))
                waiting += tags.get(_SUB_DIRECTORIES, ())
                at = following
        return directories


def _start(file):
    """The layout of a TIFF and the offset of its first directory; or (None, 0)."""
    order = {b"II": "<", b"MM": ">"}.get(file.read(2))
    if order is None:
        return None, 0
    try:
        small = _Layout(order, "H", "I", "I")
        (version,) = small.unpack(file, 2, "H")
        if version == 43:
            big = _Layout(order, "Q", "Q", "Q")
            return big, *big.unpack(file, 8, "Q")
        if version != 42:
            return None, 0
        (first,) = small.unpack(file, 4, "I")
    except struct.error:
        return None, 0
    ndpi = small._replace(following="Q", ndpi=True)
    try:
        (long,) = ndpi.unpack(file, 4, "Q")
        if _NDPI in _read(file, ndpi, long)[0]:
            return ndpi, long
    except (struct.error, ValueError):
        pass
    return small, first


def _read(file, layout, at):
    """{code: values} of the tags in `_TAGS`, and the offset of the next directory."""
    (n,) = layout.unpack(file, at, layout.count)
    if n > size_limits.TAGS:
        raise ValueError(f"more than {size_limits.TAGS} tags in an image directory")
    letters = f"HH{2 * layout.offset}"
    entry = struct.calcsize("=" + letters)
    begin = at + struct.calcsize("=" + layout.count)
    end = begin + n * entry
    (following,) = layout.unpack(file, end, layout.following)
    after = end + struct.calcsize("=" + layout.following)
    upper = layout.unpack(file, after, f"{n}I") if layout.ndpi else (0,) * n
    fields = layout.unpack(file, begin, letters * n)
    tags = {}
    for i in range(n):
        code, kind, count, offset = fields[4 * i : 4 * i + 4]
        if code == _NDPI:
            tags[code] = (1,)
        if code not in _TAGS or kind not in _TYPES or count > size_limits.DIRECTORIES:
            continue
        values = f"{count}{_TYPES[kind]}"
        if struct.calcsize("=" + values) <= struct.calcsize("=" + layout.offset):
            offset = begin + (i + 1) * entry - struct.calcsize("=" + layout.offset)
        else:
            offset |= upper[i] << 32
        tags[code] = layout.unpack(file, offset, values)
    return tags, following


def _directory(tags):
    values = lambda code: tags.get(code) or _MISSING.get(code, (0,))
    return Directory(
        kind=values(_KIND)[0],
        shape=(values(_HEIGHT)[0], values(_WIDTH)[0]),
        tile=(values(_TILE_HEIGHT)[0], values(_TILE_WIDTH)[0]),
        bits=values(_BITS),
        samples=values(_SAMPLES)[0],
        photometric=values(_PHOTOMETRIC)[0],
        extra=values(_EXTRA),
    )
