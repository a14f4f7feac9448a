"""Composes an image of the fine detail of one texture and the coarse look of another.

`low_band` is what an antialiased overview shows, the box means over k pixels; `detail`
is the rest, whose box means are exactly 0. `join` adds the detail of one texture to the
low band of another and moves no box mean. Regions without a lesion are composites too
(the sham), since a composite itself can be recognised.
"""

import numpy as np
from jaxtyping import Float32
from PIL import Image
from scipy import ndimage

PROJECTIONS = 8


def box_means(
    x: Float32[np.ndarray, "h w c"], k: int
) -> Float32[np.ndarray, "h2 w2 c"]:
    """Means over the k x k boxes of an image whose sides k divides."""
    height, width, channels = x.shape
    if height % k or width % k:
        raise ValueError(f"image {height}x{width} does not divide into boxes of {k} px")
    rows = x.reshape(height // k, k, width * channels).mean(axis=1)
    return rows.reshape(height // k, width // k, k, channels).mean(axis=2)


def smooth(
    means: Float32[np.ndarray, "h w c"], k: int
) -> Float32[np.ndarray, "h2 w2 c"]:
    """A smooth image k times finer whose box means are exactly `means`.

    Bilinear interpolation smooths the box means by a known kernel, against which they
    are sharpened first; the rest, some 1e-3 grey levels, is added per box.
    """
    right = ((np.arange(k) + 0.5) / k - 0.5).clip(0).mean()
    kernel = [right, 1 - 2 * right, right]
    sharp = means.copy()
    for _ in range(PROJECTIONS):
        blurred = ndimage.correlate1d(sharp, kernel, axis=0, mode="nearest")
        sharp += means - ndimage.correlate1d(blurred, kernel, axis=1, mode="nearest")
    fine = _bilinear(sharp, k)
    return fine + _repeat(means - box_means(fine, k), k)


def low_band(x: Float32[np.ndarray, "h w c"], k: int) -> Float32[np.ndarray, "h w c"]:
    """What box means over k pixels see of an image, as a smooth image."""
    return smooth(box_means(x, k), k)


def detail(x: Float32[np.ndarray, "h w c"], k: int) -> Float32[np.ndarray, "h w c"]:
    """What box means over k pixels do not see of an image: its box means are 0."""
    return x - low_band(x, k)


def join(
    low: Float32[np.ndarray, "h w c"], detail: Float32[np.ndarray, "h w c"], k: int
) -> Float32[np.ndarray, "h w c"]:
    """Adds detail, with box means 0, to a low band within 0..255.

    Every box of k px keeps its mean, which clipping would move: the contrast of a box
    about its mean is reduced until it fits.
    """
    means = box_means(low, k)
    rest = low + detail - _repeat(means, k)
    top = _reduce(np.maximum, rest, k).clip(1e-6)
    bottom = (-_reduce(np.minimum, rest, k)).clip(1e-6)
    fit = np.minimum((255 - means) / top, means / bottom).clip(0, 1)
    return _repeat(means, k) + rest * _repeat(fit.astype(rest.dtype), k)


def _reduce(ufunc, x, k):
    """Over the k x k boxes, whole rows first: much the faster."""
    height, width, channels = x.shape
    rows = ufunc.reduce(x.reshape(height // k, k, width * channels), axis=1)
    return ufunc.reduce(rows.reshape(height // k, width // k, k, channels), axis=2)


def _repeat(x, k):
    return x.repeat(k, axis=0).repeat(k, axis=1)


def _bilinear(x, k):
    height, width, channels = x.shape
    size, bilinear = (width * k, height * k), Image.Resampling.BILINEAR
    planes = [Image.fromarray(np.ascontiguousarray(x[..., c])) for c in range(channels)]
    return np.stack([np.asarray(plane.resize(size, bilinear)) for plane in planes], -1)
