"""Input of methods with a trunk of their own that streams whole slides."""

import itertools
from collections.abc import Iterator

import numpy as np

from wsi_jax.config_fields import FieldError
from wsi_jax.data.cohort import Cohort
from wsi_jax.data.order import slides_of_batch
from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.run.inputs.base import Input, LoadedSlide, TilePositions
from wsi_jax.run.tiling import Tiling, as_streamed_slide
from wsi_jax.slides.grid import level0
from wsi_jax.slides.slide import SlideError
from wsi_jax.types import Bag


class SlideInput(Input):
    """Whole slides, of which a method reads tile after tile.

    Args:
        method: config of the method.
        tiling: grid and tissue.
        mesh: devices, each of which has slides of its own.
        config: the experiment, where cohorts are read.
        tiled: the slides of its cohort, with their tiles.
    """

    description = "streams whole slides"

    def __init__(self, method, tiling, mesh, config=None, tiled=()):
        super().__init__(method, tiling, mesh, config)
        # The pictures are for the contact sheet only.
        self._tiled = {s.row.slide_id: s._replace(picture=None) for s in tiled}
        self._streamed = {}

    @classmethod
    def check(cls, config):
        name = type(config.method).__name__
        if config.precomputed:
            raise FieldError("precomputed", f"{name} reads slides; leave it empty")
        if config.encoder is not None:
            raise ValueError(
                f"{name} has a trunk of its own: encoder=None in the config file, and "
                "--config.method.trunk"
            )
        config.check_trunks()
        config.method.check(config.grid.size_px)
        if config.grid.overlap_px:
            raise FieldError("grid.overlap_px", "cells of a map do not overlap")
        if config.features:
            raise FieldError("features", "no features are made")

    @classmethod
    def tiling_config(cls, config):
        trunk = config.method.trained().trunk
        return Tiling(
            grid=config.grid, tissue=config.tissue, encoder=trunk, overhang=True
        )

    @classmethod
    def tilings(cls, config):
        return ()

    @classmethod
    def subtitle(cls, config):
        return (
            f"Whole slides at {config.grid.mpp:g} um/px, {config.method.trunk.name} "
            "trained end to end on slide labels."
        )

    def template(self, dim):
        x, mask = np.zeros((1, 1, dim), np.float32), np.ones((1, 1), bool)
        return Bag(x, mask, np.zeros(1, np.int32), np.ones(1, np.float32))

    def one(self, slide, encode_batch, reading, meter):
        streamed = as_streamed_slide(slide, self.tiling.grid, reading)
        bag = self._bag([streamed], np.zeros(1, np.int32), np.ones(1, np.float32))
        return LoadedSlide(bag, np.arange(len(slide.yx)), streamed=streamed)

    def finish(self, loaded, reading, meter):
        slide = loaded.streamed
        meter.add(slides=1, tiles=slide.n_read, bytes_decoded=slide.bytes_decoded)
        if slide.n_unreadable > reading.max_unreadable * slide.n_read:
            raise SlideError(
                f"{slide.unreadable_note()}; more than --config.reading.max_unreadable="
                f"{reading.max_unreadable:g}: copy the slide again, or raise it"
            )
        return slide.unreadable_note()

    def training_batches(self, part, plan, start, weights=None):
        targets = part.targets
        weights = np.ones(len(targets), np.float32) if weights is None else weights
        for step in itertools.count(start):
            at = slides_of_batch(plan.seed, step, targets, plan.batch, plan.balanced)
            slides = [self._slide(part.rows[i]) for i in at]
            yield self._bag(slides, targets[at], weights[at])

    def evaluation_batches(self, part):
        targets, size = part.targets, self._evaluation_size()
        for first in range(0, len(targets), size):
            rows = part.rows[first : first + size]
            target = np.zeros((size, *targets.shape[1:]), targets.dtype)
            target[: len(rows)] = targets[first : first + size]
            weight = (np.arange(size) < len(rows)).astype(np.float32)
            bag = self._bag(list(map(self._slide, rows)), target, weight)
            yield bag, [len(self._tiled[row.slide_id].yx) for row in rows]

    def put(self, batch):
        return batch

    def positions(self, row, slide):
        tiled, grid = self._tiled[row.slide_id], self.tiling.grid
        yx = level0(tiled.yx, grid.mpp, tiled.mpp)
        return TilePositions(yx, grid.size_px, grid.mpp)

    def fingerprints(self, part):
        settings = self.tiling.fingerprint()
        return {
            row.slide_id: self._tiled[row.slide_id].fingerprint(settings)
            for row in part.rows
        }

    def describe_memory(self, stages, part):
        estimates = [
            stage.memory_estimate(self.streamed_slides(part))
            for stage in stages
            if stage.memory_estimate
        ]
        devices, batch = self.mesh.size, self._config.train.batch
        if estimates and devices > 1:
            note = f"{devices} devices, a slide on each at a time"
            if idle := max(0, devices - batch):
                note += (
                    f"; {idle} have none in a batch of {batch}: --config.train.batch="
                    f"{devices} has one for each"
                )
            estimates.append(note)
        return estimates

    def streamed_slides(self, part: Cohort) -> Iterator[StreamedSlide]:
        """The slides of a part."""
        return map(self._slide, part.rows)

    def work(self):
        slides = list(self._streamed.values())
        return {
            "tiles": sum(slide.n_read for slide in slides),
            "bytes_decoded": sum(slide.bytes_decoded for slide in slides),
        }

    def slides_read(self):
        return [name for name, slide in list(self._streamed.items()) if slide.n_read]

    def free_memory(self):
        pass  # readers bound their memory

    def notes(self):
        return {
            name: s.unreadable_note()
            for name, s in self._streamed.items()
            if s.first_error
        }

    def _evaluation_size(self) -> int:
        """Slides in an evaluation batch; several a device, to share out by size."""
        return 4 * self.mesh.size if self.mesh.size > 1 else 1

    def _bag(self, slides: list[StreamedSlide], target, weight) -> Bag:
        """A batch; slides missing at its end have no weight."""
        return Bag(tuple(slides), None, target, weight)

    def _slide(self, row) -> StreamedSlide:
        """A slide of the cohort, opened once."""
        if row.slide_id not in self._streamed:
            tiled, reading = self._tiled[row.slide_id], self._config.reading
            self._streamed[row.slide_id] = as_streamed_slide(
                tiled, self.tiling.grid, reading
            )
        return self._streamed[row.slide_id]
