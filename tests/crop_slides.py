"""Small real slides of two sizes, and batches of them for methods that read crops."""

import dataclasses
import itertools
import types

import jax
import numpy as np
import optax

from wsi_jax.data.crop_reader import CropReader
from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.methods.attention_sampling import AttentionSampling, LossConfig
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder
from wsi_jax.nets.crop_options import HeadConfig
from wsi_jax.nets.crop_sampler import SamplingConfig
from wsi_jax.nets.overview_attention import OverviewConfig
from wsi_jax.slides.pyramid_writer import write_pyramid
from wsi_jax.training.compile import compile_method
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Task

MPP, CELL = 8.0, 4  # of overviews: cells of 32 um
TASK = Task(("normal", "tumor"))
TRUNK = ConvNeXtEncoder(blocks=(1,), width=4, stem=4, scale=0.5)
EMPTY = types.MappingProxyType({})


def method(head=EMPTY, loss=EMPTY, sampling=EMPTY, **fields) -> AttentionSampling:
    """A small method; groups of fields as dicts."""
    small = {"trunk": TRUNK, "mpps": (1.0, 2.0), "crop_px": 16, "crops": 6}
    return AttentionSampling(
        overview=OverviewConfig(channels=4, layers=1),
        head=HeadConfig(**{"width": 4, "unit_length": True, **head}),
        loss=LossConfig(**{"entropy": 0.1, **loss}),
        sampling=SamplingConfig(**sampling),
        **(small | fields),
    )


def write_slides(folder) -> list[StreamedSlide]:
    """Three slides of noise: 10 x 12, 7 x 9 and 7 x 9 cells, half of them tissue."""
    rng, slides = np.random.default_rng(0), []
    for i, (rows, columns) in enumerate(((10, 12), (7, 9), (7, 9))):
        path = folder / f"slide_{i}.tif"
        size = 32 * rows - 5, 32 * columns - 11
        image = rng.integers(0, 256, (size[0], size[1], 3)).astype(np.uint8)
        write_pyramid(path, image, 1.0, quality=95)
        yx = CELL * np.argwhere(rng.random((rows, columns)) < 0.5).astype(np.int32)
        slides.append(StreamedSlide(str(path), None, yx, CELL, MPP, threads=2))
    return slides


def reader(config, **kwargs) -> CropReader:
    kwargs = {"resident": config.resident} | kwargs
    crop_px = config.cells(MPP, CELL).crop_px
    return CropReader(config.reads(), crop_px, threads=2, **kwargs)


def batch(reader, slides):
    """All slides, the last row filling up."""
    label = np.array([0, 1, 1, 0], np.int32)
    weight = np.array([1, 2, 1, 0], np.float32)
    return reader.bag(slides, label, weight)


class Run:
    """A stage of a method compiled for some devices, with a reader and one batch.

    Args:
        config: of the method.
        slides: of the batch.
        stage: number of the stage.
        tx: the optimiser.
        kwargs: of the reader.
    """

    def __init__(self, config, slides, stage=0, tx=None, devices=1, **kwargs):
        self.reader = reader(config, **kwargs)
        self.bag, self.requests = batch(self.reader, slides), []
        self.stage = config.stages(TASK, tx or optax.sgd(0.1), MPP, CELL)[stage]
        mesh = make_mesh(jax.devices()[:devices])
        self.method = compile_method(self.stage.method, mesh, self._read)

    def _read(self, slides, magnification, yx, mask):
        self.requests.append(int(mask.sum()))
        return self.reader.read(slides, magnification, yx, mask)

    def init(self):
        return self.method.init(jax.random.key(0), self.bag)

    def steps(self, state, count):
        """The state and metrics after some steps on the same batch."""
        steps = self.method.steps(state, itertools.repeat(self.bag))
        for state, metrics in itertools.islice(steps, count):  # noqa: B007
            pass
        return state, metrics

    def predict(self, params, key=1):
        return self.method.predict(params, self.bag, jax.random.key(key))


def on_device(config):
    return dataclasses.replace(config, resident=True)
