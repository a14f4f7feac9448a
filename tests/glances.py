"""Small real slides of two sizes, and a method that looks at them."""

import numpy as np

from wsi_jax.data.crop_reader import CropReader
from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.nets.encoder import ConvNeXtEncoder
from wsi_jax.slides.pyramid import write_pyramid
from wsi_jax.types import Task

MPP, CELL = 8.0, 4  # of overviews: cells of 32 um
TASK = Task(("normal", "tumor"))
TRUNK = ConvNeXtEncoder(blocks=(1,), width=4, stem=4, scale=0.5)


def method(**fields) -> AttentionSampling:
    fields = {"mpps": (1.0, 2.0), "crop_px": 16, "crops": 6, "entropy": 0.1} | fields
    small = {"trunk": TRUNK, "attention": 4, "layers": 1, "width": 4}
    return AttentionSampling(**(small | fields))


def write_slides(folder) -> list[StreamedSlide]:
    """Three slides of noise: 10 x 12, 7 x 9 and 7 x 9 cells, half of them tissue."""
    rng, views = np.random.default_rng(0), []
    for i, (rows, columns) in enumerate(((10, 12), (7, 9), (7, 9))):
        path = folder / f"slide_{i}.tif"
        size = 32 * rows - 5, 32 * columns - 11
        image = rng.integers(0, 256, (size[0], size[1], 3)).astype(np.uint8)
        write_pyramid(path, image, 1.0, quality=95)
        yx = CELL * np.argwhere(rng.random((rows, columns)) < 0.5).astype(np.int32)
        views.append(StreamedSlide(str(path), None, yx, CELL, MPP, threads=2))
    return views


def reader(config, **how) -> CropReader:
    crop_px = config.cells(MPP, CELL).crop_px
    return CropReader(config.reads(), crop_px, threads=2, **how)


def batch(config, views, resident, after=None, **how):
    """All slides, the last row filling up."""
    label = np.array([0, 1, 1, 0], np.int32)
    weight = np.array([1, 2, 1, 0], np.float32)
    made = reader(config, resident=resident, **how).bag(views, label, weight, after)
    return made
