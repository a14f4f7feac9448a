"""Writes a tiled JPEG pyramid that states its micrometres per pixel."""

import os
import pathlib

import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image

from wsi_jax.files import replacing

MIN_SIDE_PX = 256


def rescale(
    image: UInt8[np.ndarray, "h w 3"], mpp: float, new_mpp: float
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resamples an image from `mpp` to `new_mpp` um/px, exactly to scale.

    The new shape is floored and what does not fill a last pixel is cut off, so that
    the new image has `new_mpp` exactly and not nearly.
    """
    scale = mpp / new_mpp
    height, width = (int(side * scale + 1e-6) for side in image.shape[:2])
    box = (0, 0, width / scale, height / scale)
    box = (0, 0, min(box[2], image.shape[1]), min(box[3], image.shape[0]))
    picture = Image.fromarray(image)
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box))


def write_pyramid(
    path: str | os.PathLike,
    image: UInt8[np.ndarray, "h w 3"],
    mpp: float,
    quality: int = 80,
    tile_px: int = 256,
) -> None:
    """Writes a slide that OpenSlide opens as "generic-tiff", with `openslide.mpp-x`.

    Levels halve by box means until a side would fall below 256 px. The file appears
    under its name only when it is whole.

    Args:
        path: the `.tif` to write.
        image: level 0, of `mpp`.
        quality: quality of JPEG, 1 to 100.
        tile_px: side of the TIFF's own tiles, a multiple of 16.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    big = image.nbytes > 2**31
    with (
        replacing(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=big) as tiff,
    ):
        reduced = 0
        while True:
            tiff.write(
                image,
                photometric="rgb",
                tile=(tile_px, tile_px),
                compression="jpeg",
                compressionargs={"level": quality},
                subfiletype=reduced,
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
                metadata=None,
                software="wsi_jax",
                maxworkers=1,
            )
            height, width = (side // 2 for side in image.shape[:2])
            if min(height, width) < MIN_SIDE_PX:
                break
            even = Image.fromarray(image[: 2 * height, : 2 * width])
            image, mpp, reduced = np.asarray(even.reduce(2)), 2 * mpp, 1
