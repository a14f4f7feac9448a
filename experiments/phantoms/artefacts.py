"""Stain, blur, folds and pens: what differs between practice slides of any label."""

import dataclasses

import numpy as np
from jaxtyping import Float32, UInt8
from scipy import ndimage

from experiments.phantoms.synthetic_masks import noise

# Rows: haematoxylin, eosin and DAB in optical density (Ruifrok and Johnston, 2001).
HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float32)
HED /= np.linalg.norm(HED, axis=1, keepdims=True)
PEN_RGB = ((25, 40, 110), (20, 90, 60), (30, 30, 35))
SITES = ("A", "B")


@dataclasses.dataclass(kw_only=True)
class Artefacts:
    """How strong artefacts are, in every class alike.

    Attributes:
        mpps: um/px that level 0 of a slide may have.
        stain: spread of the log gain of each stain over slides.
        site_stain: distance of the two sites, in the same unit.
        quality: JPEG quality, least and most.
        blur_px: greatest sigma of a blurred patch, in pixels of the tiles.
        fold: share of slides with a fold.
        pen: share of slides with a pen mark.
    """

    mpps: tuple[float, ...] = (0.226, 0.243, 0.25, 0.5)
    stain: float = 0.08
    site_stain: float = 0.15
    quality: tuple[int, int] = (70, 90)
    blur_px: float = 1.5
    fold: float = 0.35
    pen: float = 0.25


def stain_gains(
    rng: np.random.Generator, site: str, config: Artefacts
) -> Float32[np.ndarray, "3"]:
    """Gains of haematoxylin, eosin and the rest for one slide."""
    gains = np.exp(config.stain * rng.normal(size=3))
    away = config.site_stain * (0.5 if site == SITES[0] else -0.5)
    return (gains * np.exp([away, -away, 0])).astype(np.float32)


def restain(
    tiles: UInt8[np.ndarray, "n h w 3"], gains: Float32[np.ndarray, "3"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Multiplies the stains of tiles, which are composed afterwards.

    In a composite the logarithm would shift the means that an overview sees.
    """
    density = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
    matrix = np.linalg.inv(HED) @ np.diag(gains).astype(np.float32) @ HED
    light = 256 * np.exp(-(density[tiles] @ matrix)) - 1
    return light.clip(0, 255).round().astype(np.uint8)


def background(
    rng: np.random.Generator, shape: tuple[int, int]
) -> Float32[np.ndarray, "h w 3"]:
    """Bright glass, a little uneven and tinted."""
    level = rng.uniform(238, 247) + rng.uniform(-1.5, 1.5, 3)
    uneven = noise(rng, shape, min(shape) / 3)[..., None] * 0.8
    return level.astype(np.float32) + uneven


def blur(
    rng: np.random.Generator, image: Float32[np.ndarray, "h w 3"], most_px: float
) -> None:
    """Blurs up to three round patches, in place."""
    height, width = image.shape[:2]
    for _ in range(rng.integers(0, 4)):
        sigma = rng.uniform(0, most_px)
        radius = int(rng.uniform(0.05, 0.14) * min(height, width))
        y, x = rng.integers(0, height), rng.integers(0, width)
        rows = slice(max(y - radius, 0), y + radius)
        columns = slice(max(x - radius, 0), x + radius)
        patch = image[rows, columns]
        soft = ndimage.gaussian_filter(patch, (sigma, sigma, 0))
        yy, xx = np.ogrid[rows.start : rows.start + len(patch), : patch.shape[1]]
        distance = np.hypot(yy - y, xx + columns.start - x) / radius
        weight = np.clip((1 - distance) * 4, 0, 1)[..., None].astype(np.float32)
        image[rows, columns] = patch + weight * (soft - patch)


def fold(
    rng: np.random.Generator,
    image: Float32[np.ndarray, "h w 3"],
    alpha: Float32[np.ndarray, "h w 1"],
) -> None:
    """Darkens a winding band of tissue, in place, as where it lies double."""
    away = _stroke(rng, image.shape[:2], wave=0.03)
    width = rng.uniform(0.004, 0.012) * min(image.shape[:2])
    band = np.clip((width - away) / 3 + 0.5, 0, 1)[..., None] * alpha
    image *= 1 - rng.uniform(0.2, 0.4) * band


def pen(rng: np.random.Generator, image: Float32[np.ndarray, "h w 3"]) -> None:
    """Draws a felt-tip stroke over glass and tissue, in place."""
    away = _stroke(rng, image.shape[:2], wave=0.015)
    width = rng.uniform(0.01, 0.016) * min(image.shape[:2])
    ink = np.array(PEN_RGB[rng.integers(len(PEN_RGB))], np.float32)
    band = 0.7 * np.clip((width - away) / 4 + 0.5, 0, 1)[..., None]
    # Near one side only: a stroke is a segment, not a line.
    side = int(rng.integers(4))
    reach = rng.uniform(0.1, 0.25)
    ramp = np.linspace(0, 1, image.shape[side % 2], dtype=np.float32)
    ramp = ramp if side < 2 else ramp[::-1]
    ramp = ramp[:, None, None] if side % 2 == 0 else ramp[None, :, None]
    band = band * np.clip((reach - ramp) * 60, 0, 1)
    image += band * (ink - image)


def _stroke(rng, shape, wave):
    """Distance, px, of every pixel from a winding line across the image."""
    angle = rng.uniform(0, np.pi)
    y, x = (np.arange(side, dtype=np.float32) for side in shape)
    y0, x0 = rng.uniform(0.2, 0.8) * shape[0], rng.uniform(0.2, 0.8) * shape[1]
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along = (y - y0)[:, None] * sin + (x - x0)[None] * cos
    beside = (y - y0)[:, None] * cos - (x - x0)[None] * sin
    size = min(shape)
    winding = np.sin(along * np.float32(rng.uniform(6, 14) / size))
    return np.abs(beside + np.float32(wave * size) * winding).astype(np.float32)
