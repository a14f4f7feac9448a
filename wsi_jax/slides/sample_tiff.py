"""A small tiled TIFF made on the spot, for checks of what is read here and how fast."""

import os

import numpy as np
import tifffile

MPP = 0.5
TILE_PX = 256
# What slides are compressed by, and tifffile's names of it.
COMPRESSIONS = {
    "JPEG": "jpeg",
    "JPEG 2000 of Aperio": "aperio_jp2000_rgb",
    "Deflate": "deflate",
    "LZW": "lzw",
    "Zstandard": "zstd",
    "none": None,
}


def sample_pixels(side_px: int) -> np.ndarray:
    """Pixels [h w 3] with structure and grain, as tissue has."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side_px, :side_px] / 23
    waves = 180 + 50 * np.sin(y) * np.cos(x)
    grain = rng.integers(-15, 16, (side_px, side_px, 3))
    return np.clip(waves[..., None] + grain, 0, 255).astype(np.uint8)


def write_sample(
    path: str | os.PathLike, pixels: np.ndarray, compression: str = "JPEG"
) -> None:
    """Writes pixels [h w 3] as a tiled TIFF at MPP um/px.

    Args:
        path: the file.
        pixels: what it shows.
        compression: one of COMPRESSIONS.
    """
    # OpenSlide knows these codes in files that say to be Aperio's only.
    aperio = f"Aperio Image Library v1\r\n|MPP = {MPP}"
    tifffile.imwrite(
        path,
        pixels,
        tile=(TILE_PX, TILE_PX),
        photometric="rgb",
        compression=COMPRESSIONS[compression],
        description=aperio if "Aperio" in compression else None,
        resolution=(1e4 / MPP,) * 2,
        resolutionunit=3,
        metadata=None,
    )
