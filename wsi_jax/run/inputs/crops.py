"""Input of methods that choose crops of a slide, by its overview or of all tiles."""

import dataclasses
import functools

import numpy as np

from wsi_jax.data.crop_reader import CropReader
from wsi_jax.data.order import filled_up
from wsi_jax.run.inputs.base import LoadedSlide
from wsi_jax.run.inputs.slides import SlideInput
from wsi_jax.run.tiling import as_streamed_slide
from wsi_jax.training.compile import split
from wsi_jax.training.mesh import own_rows
from wsi_jax.types import Bag, Overviews


class CropInput(SlideInput):
    """Overviews of slides, and crops where a method wants them."""

    description = "reads crops of a slide"
    mpp_field = "method.mpps"

    @classmethod
    def mpps(cls, method, grid):
        return method.reads()

    @classmethod
    def tiling_config(cls, config):
        reads = cls.mpps(config.method, config.grid)
        return dataclasses.replace(super().tiling_config(config), reads=reads)

    @classmethod
    def stages(cls, method, grid, task, tx):
        return method.stages(task, tx, grid.mpp, grid.size_px)

    @classmethod
    def subtitle(cls, config):
        return config.method.description(config.grid.mpp)

    def template(self, dim):
        side = self.tiling.grid.size_px
        x = Overviews(np.zeros((1, side, side, 3), np.uint8), np.zeros((1, 3)))
        return super().template(dim)._replace(x=x, mask=np.ones((1, 1, 1), bool))

    def one(self, slide, encode_batch, reading, meter):
        # A reader of its own: what it keeps in memory goes with the slide.
        self._reader = self._reader_of(threads=reading.threads)
        streamed = as_streamed_slide(slide, self.tiling.grid, reading)
        bag = self._bag([streamed], np.zeros(1, np.int32), np.ones(1, np.float32))
        return LoadedSlide(bag, np.arange(len(slide.yx)), streamed=streamed)

    def read_crops(self, slides, magnification, yx, mask):
        return self._reader.read(slides, magnification, yx, mask)

    def put(self, batch):
        if not self.method.resident:
            return batch  # the driver does
        rows = own_rows(self.mesh, len(batch.weight))
        own = (None if a is None else a[rows] for a in batch[1:])
        return split(Bag(batch.x, *own), self.mesh)

    def positions(self, row, slide):
        cells, fine = super().positions(row, slide), self.method.reads()[0]
        size_px = round(cells.size_px * cells.mpp / fine)
        return cells._replace(size_px=size_px, mpp=fine)

    def _evaluation_size(self):
        return self._config.train.batch

    def _bag(self, slides, target, weight):
        target, weight = (filled_up(a, self.mesh.size) for a in (target, weight))
        rows = own_rows(self.mesh, len(weight))
        return self._reader.bag(slides, target, weight, rows)

    @functools.cached_property
    def _reader(self) -> CropReader:
        """The reader of the cohort's slides."""
        # On the device all batches have one shape: each compiles a whole step.
        least = self._largest() if self.method.resident else (1, 1)
        threads, room = self._config.reading.threads, self._config.loading.cache_gib
        return self._reader_of(threads=threads, cache_gib=room, least=least)

    def _reader_of(self, **kwargs) -> CropReader:
        method, grid = self.method, self.tiling.grid
        return CropReader(
            method.reads(),
            method.cells(grid.mpp, grid.size_px).crop_px,
            overviews=method.overviews,
            resident=method.resident,
            all_tiles=method.all_tiles,
            **kwargs,
        )

    def _largest(self) -> tuple[int, int]:
        """(rows, columns) of cells that hold any of the cohort's slides."""
        usable, grid = (
            [s for s in self._tiled.values() if not s.reason],
            self.tiling.grid,
        )
        cell_um = grid.mpp * grid.size_px
        shapes = [np.array(s.shape) * s.mpp / cell_um for s in usable]
        return tuple(np.ceil(np.max(shapes, 0)).astype(int).tolist())
