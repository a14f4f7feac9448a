"""Antialiased bilinear resampling of a stored level."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_ROWS = 64  # of the result at a time: what is added up then stays in the cache


def resample(
    stored: Callable[..., UInt8[np.ndarray, "y x 3"]],
    ratio: float,
    yx: tuple[float, float],
    size: tuple[int, int],
    out: UInt8[np.ndarray, "h w 3"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """A rectangle of a level at a coarser pixel size; `stored` itself at ratio 1.

    `stored` (yx, size, out=None) gives pixels of the level, also beyond its edges.
    `ratio` is the side of a result's pixel in those of the level; corner and size (h,
    w) are in pixels of the result, which may be written to `out`, and is then returned.
    """
    y, x = whole = tuple(map(round, yx))
    if ratio == 1 and math.dist(yx, whole) < 1e-3:
        return stored(whole, size, out)
    if ratio == 2 and (y, x) == yx:
        h, w = size
        out = np.empty((h, w, 3), np.uint8) if out is None else out
        return halve(stored((2 * y - 1, 2 * x - 1), (2 * h + 2, 2 * w + 2)), out)
    # The filter reaches one output pixel (or one source pixel) beyond its centre.
    support = max(1.0, ratio)
    start = tuple(at * ratio for at in yx)
    stop = tuple((at + n) * ratio for at, n in zip(yx, size, strict=True))
    origin = tuple(math.floor(at - support) for at in start)
    extent = tuple(
        math.ceil(at + support) - o for at, o in zip(stop, origin, strict=True)
    )
    image = Image.fromarray(stored(origin, extent))
    (top, left), (bottom, right) = np.subtract((start, stop), origin)
    box = (left, top, right, bottom)
    return np.array(image.resize(size[::-1], Image.Resampling.BILINEAR, box=box))


def edge_padded(
    decode: Callable[..., UInt8[np.ndarray, "y x 3"]],
    shape: tuple[int, int],
    yx: tuple[int, int],
    size: tuple[int, int],
    out: UInt8[np.ndarray, "h w 3"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """A rectangle of a level whose outermost pixels are repeated beyond its edges.

    `decode` (y, x, h, w, out) gives pixels inside the level, of `shape` (h, w). The
    corner may lie outside; the result may be written to `out`, and is then returned.
    """
    y, x = (min(max(at, 0), n - 1) for at, n in zip(yx, shape, strict=True))
    bottom, right = (
        min(max(at + n, 1), end) for at, n, end in zip(yx, size, shape, strict=True)
    )
    h, w = bottom - y, right - x
    if (h, w) == tuple(size):
        return decode(y, x, h, w, out)
    pixels = decode(y, x, h, w, None)
    rows, cols = (
        np.clip(np.arange(n) + at - first, 0, there - 1)
        for at, n, first, there in zip(yx, size, (y, x), (h, w), strict=True)
    )
    return pixels[np.ix_(rows, cols)]


def halve(
    pixels: UInt8[np.ndarray, "y x 3"], out: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Writes half the resolution of `pixels` [2h + 2, 2w + 2] to `out`; returns it.

    The same pixels as Pillow's antialiased bilinear filter in half its time: it weighs
    four pixels 1, 3, 3 and 1 along a row, rounds to 8 bits, and does the same along the
    columns. (Of tall images Pillow does the columns first, which may round to the next
    grey level.) The outermost row or column of each side only has a weight in its
    neighbours.
    """
    for top in range(0, len(out), _ROWS):
        rows = out[top : top + _ROWS]
        _halve(pixels[2 * top : 2 * (top + len(rows)) + 2], rows)
    return out


def _halve(pixels, out):
    h, w = out.shape[:2]
    # Even and odd rows, of these even and odd columns: all that is added is contiguous.
    apart = np.empty((2, 2, 3, h + 1, w + 1), np.uint16)
    apart[:] = pixels.reshape(h + 1, 2, w + 1, 2, 3).transpose(1, 3, 4, 0, 2)
    even, odd = (_weigh(*columns.reshape(2, -1), 1) for columns in apart)
    channels = _weigh(even, odd, w + 1).reshape(3, h + 1, w + 1)
    for channel in range(3):
        out[..., channel] = channels[channel, :h, :w]


def _weigh(even, odd, step):
    """(1 3 3 1) / 8 of two lines and the two that come `step` later, rounded half up.

    The last `step` results, and those across the ends of rows, mean nothing.
    """
    out = np.empty_like(even)
    total = out[:-step]
    np.add(odd[:-step], even[step:], out=total)
    total *= 3
    total += even[:-step]
    total += odd[step:]
    total += 4
    total >>= 3
    return out
