"""Where a training's batches come from: feature files, or the slides themselves."""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.experiment import Experiment
from wsi_jax.data.bags import Bags, evaluation_bags, training_bags
from wsi_jax.data.cohort import Cohort, Row, label_ids
from wsi_jax.data.features import read_features
from wsi_jax.data.order import bag_batch_indices
from wsi_jax.evals.cost import Meter
from wsi_jax.slides.grid import level0
from wsi_jax.slides.slide import Slide, SlideError
from wsi_jax.survey import Surveyed, view
from wsi_jax.train.compile import make_mesh, split
from wsi_jax.types import Bag


class Tiles(NamedTuple):
    """Where the tiles of a slide are that a verdict looked at.

    Attributes:
        yx: corners [n 2], level-0 pixels, in the order of the attention.
        size_px: side, in pixels at mpp.
        mpp: um/px.
    """

    yx: np.ndarray
    size_px: int
    mpp: float


class Source(Protocol):
    """Batches of a cohort, and what a report shows of its slides.

    Attributes:
        mesh: over whose devices batches are split.
        dim: features of a tile; 0 of slides.
    """

    mesh: Mesh
    dim: int

    def training(self, part: Cohort, weights: np.ndarray | None, start: int) -> Any:
        """Batches without end, from step `start` on; in host memory."""

    def evaluation(self, part: Cohort) -> Iterator[tuple[Any, list[int]]]:
        """Every slide once, in order; and how many tiles each has."""

    def put(self, batch: Any) -> Any:
        """A batch where the method wants it."""

    def views(self, part: Cohort) -> Iterator[Any]:
        """The slides, as a method sees them that reads them itself."""

    def tiles(self, row: Row, slide: Slide) -> Tiles:
        """Of one slide."""

    def charge(self, meter: Meter) -> None:
        """Adds what was read since it was last asked; the end of a training."""

    def notes(self) -> dict[str, str]:
        """What of which slide could not be read."""


class FeatureSource:
    """Features of tiles, from HDF5 files."""

    def __init__(self, config: Experiment, files: pathlib.Path, mesh: Mesh):
        self.mesh, self.dim = mesh, 0
        self._config, self._files, self._known = config, files, {}

    def training(self, part, weights, start):
        train = self._config.train
        batches = training_bags(
            self._bags(part, weights),
            seed=train.seed,
            batch_size=train.batch,
            balanced=train.balanced,
            start=start,
            process=0,
            processes=1,
        )
        return (batch.bag for batch in batches)

    def evaluation(self, part):
        bags, size = self._bags(part), self._config.train.batch
        for found in evaluation_bags(bags, batch_size=size, process=0, processes=1):
            real = found.slide[found.slide >= 0]
            yield found.bag, [int(bags.lengths[slide]) for slide in real]

    def put(self, batch):
        return split(batch, self.mesh)

    def views(self, part):
        raise TypeError("features have no views")

    def tiles(self, row, slide):
        features = read_features(self._path(row))
        size_px, mpp = self._config.grid.size_px, self._config.grid.mpp
        if self._config.precomputed:
            size_px, mpp = elsewhere(features.attrs, slide)
        return Tiles(features.yx, size_px, mpp)

    def charge(self, meter):
        del meter  # has been charged with the extraction
        self._known.clear()  # may hold the features of a whole fold

    def notes(self):
        return {}

    def _path(self, row):
        return self._files / f"{row.slide_id}.h5"

    def _bags(self, part, weights=None):
        """Bags of a part, remembered: they may keep features in memory."""
        key = tuple(row.slide_id for row in part.rows), weights is None
        if key not in self._known:
            paths = [self._path(row) for row in part.rows]
            labels = label_ids(part)
            self._known[key] = Bags(paths, labels, weights, self._config.loading)
        self.dim = self._known[key].d
        return self._known[key]


class SlideSource:
    """The slides themselves, tile by tile, on the first device.

    Args:
        config: of the run.
        found: the slides' tissue.
    """

    def __init__(self, config: Experiment, found: list[Surveyed]):
        self.mesh, self.dim = make_mesh(jax.local_devices()[:1]), 0
        self._config, self._grid = config, config.tiling().grid
        found = (one._replace(picture=None) for one in found)
        self._found = {one.row.slide_id: one for one in found}
        self._views, self._charged = {}, {}

    def training(self, part, weights, start):
        train, labels = self._config.train, label_ids(part)
        weights = np.ones(len(labels), np.float32) if weights is None else weights
        step = start
        while True:
            at = bag_batch_indices(
                train.seed, step, labels, train.batch, train.balanced
            )
            views = tuple(self._view(part.rows[i]) for i in at)
            yield Bag(views, None, labels[at], weights[at])
            step += 1

    def evaluation(self, part):
        one = np.ones(1, np.float32)
        for row, label in zip(part.rows, label_ids(part), strict=True):
            n = len(self._found[row.slide_id].yx)
            yield Bag((self._view(row),), None, label[None], one), [n]

    def put(self, batch):
        return batch

    def views(self, part):
        return map(self._view, part.rows)

    def tiles(self, row, slide):
        del slide
        one, grid = self._found[row.slide_id], self._grid
        return Tiles(level0(one.yx, grid.mpp, one.mpp), grid.size_px, grid.mpp)

    def charge(self, meter):
        views = [view for view in self._views.values() if view.n_read]
        total = {
            "slides": len(views),
            "tiles": sum(view.n_read for view in views),
            "bytes_decoded": sum(view.bytes_decoded for view in views),
        }
        meter.add(**{k: v - self._charged.get(k, 0) for k, v in total.items()})
        self._charged = total

    def notes(self):
        return {name: view.note() for name, view in self._views.items() if view.lost}

    def _view(self, row):
        if row.slide_id not in self._views:
            found, reading = self._found[row.slide_id], self._config.reading
            self._views[row.slide_id] = view(found, self._grid, reading)
        return self._views[row.slide_id]


def elsewhere(attrs: dict, slide: Slide) -> tuple[int, float]:
    """(side in px, um/px) of the tiles of TRIDENT's and CLAM's feature files."""
    try:
        side = float(attrs["patch_size_level0"])
        size_px = int(attrs.get("patch_size", side))
    except (KeyError, TypeError, ValueError):
        raise SlideError(
            f"{slide.slide_id}: its features do not tell how large their tiles are"
        ) from None
    return size_px, side * slide.mpp / size_px
