"""Where a training's batches come from: feature files, or the slides themselves."""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from wsi_jax.data.bag_store import BagStore
from wsi_jax.data.bags import Bags, evaluation_bags, training_bags
from wsi_jax.data.cohort import Cohort, Row, label_ids
from wsi_jax.data.crop_reader import CropReader
from wsi_jax.data.features import read_features
from wsi_jax.data.order import bag_batch_indices
from wsi_jax.run.config import Experiment
from wsi_jax.run.tiling import TiledSlide, view
from wsi_jax.slides.grid import level0
from wsi_jax.slides.slide import Slide, SlideError
from wsi_jax.training.compile import make_mesh, split
from wsi_jax.training.loop import Train
from wsi_jax.types import Bag

MAX_SIDE_PX = 1 << 16  # of a tile of features made elsewhere


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


@runtime_checkable
class Source(Protocol):
    """Batches of a cohort, and what a report shows of its slides.

    Attributes:
        mesh: over whose devices batches are split.
        dim: features of a tile; 0 of slides.
    """

    mesh: Mesh
    dim: int

    def training(
        self,
        part: Cohort,
        weights: np.ndarray | None,
        start: int,
        plan: Train | None = None,
    ) -> Any:
        """Batches without end, from step `start` on; in host memory.

        By the run's plan, or a stage's own.
        """

    def evaluation(self, part: Cohort) -> Iterator[tuple[Any, list[int]]]:
        """Every slide once, in order; and how many tiles each has."""

    def put(self, batch: Any) -> Any:
        """A batch where the method wants it."""

    def views(self, part: Cohort) -> Iterator[Any]:
        """The slides, as a method sees them that reads them itself."""

    def tiles(self, row: Row, slide: Slide) -> Tiles:
        """Of one slide."""

    def fingerprints(self, part: Cohort) -> dict[str, str]:
        """Of what each slide gives to learn from; by slide."""

    def read(self) -> dict[str, int]:
        """`tiles` and `bytes_decoded` read so far, of slides that training reads.

        What is kept in memory is read once; a process that goes on after a kill reads
        it anew, and that counts.
        """

    def slides(self) -> list[str]:
        """Names of the slides it has read so far."""

    def forget(self) -> None:
        """Lets go of what it keeps in memory: the end of a training."""

    def notes(self) -> dict[str, str]:
        """What of which slide could not be read."""


class FeatureSource:
    """Features of tiles, from HDF5 files."""

    def __init__(self, config: Experiment, files: pathlib.Path, mesh: Mesh):
        self.mesh, self.dim = mesh, 0
        self._config, self._files, self._known = config, files, {}

    def training(self, part, weights, start, plan=None):
        plan = plan or self._config.train
        batches = training_bags(
            self._bags(part, weights),
            seed=plan.seed,
            batch_size=plan.batch,
            balanced=plan.balanced,
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

    def fingerprints(self, part):
        names = [row.slide_id for row in part.rows]
        return dict(zip(names, self._bags(part).fingerprints, strict=True))

    def read(self):
        return {}  # the meter has been charged with the extraction

    def slides(self):
        return []

    def forget(self):
        self._known.clear()  # may hold the features of a whole fold

    def notes(self):
        return {}

    def _path(self, row):
        return self._files / f"{row.slide_id}.h5"

    def _bags(self, part, weights=None):
        """Bags of a part, remembered: they may keep features in memory."""
        key = tuple(row.slide_id for row in part.rows), weights is None
        if key not in self._known:
            self._known[key] = self._open(part.rows, label_ids(part), weights)
        self.dim = self._known[key].d
        return self._known[key]

    def _open(self, rows, labels, weights) -> BagStore:
        paths = [self._path(row) for row in rows]
        return Bags(paths, labels, weights, self._config.loading)


class SlideSource:
    """The slides themselves, tile by tile, on the first device.

    Args:
        config: of the run.
        found: the slides' tissue.
        mesh: over whose devices batches are split; None for the first device.
    """

    def __init__(
        self, config: Experiment, found: list[TiledSlide], mesh: Mesh | None = None
    ):
        self.mesh, self.dim = mesh or make_mesh(jax.local_devices()[:1]), 0
        self._config, self._grid = config, config.tiling().grid
        found = (one._replace(picture=None) for one in found)
        self._found = {one.row.slide_id: one for one in found}
        self._views = {}

    def training(self, part, weights, start, plan=None):
        for views, label, weight in self._batches(part, weights, start, plan):
            yield Bag(tuple(views), None, label, weight)

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

    def fingerprints(self, part):
        settings = self._config.tiling().fingerprint()
        return {
            row.slide_id: self._found[row.slide_id].fingerprint(settings)
            for row in part.rows
        }

    def read(self):
        views = list(self._views.values())
        return {
            "tiles": sum(view.n_read for view in views),
            "bytes_decoded": sum(view.bytes_decoded for view in views),
        }

    def slides(self):
        return [name for name, view in list(self._views.items()) if view.n_read]

    def forget(self):
        pass  # readers bound their memory

    def notes(self):
        return {
            name: view.note() for name, view in self._views.items() if view.first_error
        }

    def _batches(self, part, weights, start, plan):
        """(views, labels, weights) of the batches of a training, without end."""
        plan, labels = plan or self._config.train, label_ids(part)
        weights = np.ones(len(labels), np.float32) if weights is None else weights
        for step in itertools.count(start):
            at = bag_batch_indices(plan.seed, step, labels, plan.batch, plan.balanced)
            views = [self._view(part.rows[i]) for i in at]
            yield views, labels[at], weights[at]

    def _view(self, row):
        if row.slide_id not in self._views:
            found, reading = self._found[row.slide_id], self._config.reading
            self._views[row.slide_id] = view(found, self._grid, reading)
        return self._views[row.slide_id]


class LookSource(SlideSource):
    """Overviews of slides, and crops where a method wants them."""

    def __init__(self, config: Experiment, found: list[TiledSlide], mesh: Mesh):
        method = config.method
        super().__init__(config, found, mesh if method.resident else None)
        self._reader = CropReader(
            method.reads(),
            method.cells(config.grid.mpp, config.grid.size_px).crop_px,
            overviews=method.overviews,
            resident=method.resident,
            threads=config.reading.threads,
            cache_gib=config.loading.cache_gib,
            # On the device all batches have one shape: each compiles a whole step.
            least=self._largest() if method.resident else (1, 1),
            all_tiles=method.all_tiles,
        )

    def training(self, part, weights, start, plan=None):
        found = self._batches(part, weights, start, plan)
        batches = (self._reader.bag(*batch) for batch in found)
        return batches if self._config.method.resident else with_next(batches)

    def evaluation(self, part):
        labels, size = label_ids(part), self._config.train.batch

        def batches():
            for first in range(0, len(labels), size):
                rows = part.rows[first : first + size]
                label, weight = np.zeros(size, np.int32), np.zeros(size, np.float32)
                label[: len(rows)] = labels[first : first + size]
                weight[: len(rows)] = 1
                yield self._reader.bag(list(map(self._view, rows)), label, weight)

        count = lambda row: len(self._found[row.slide_id].yx)
        resident = self._config.method.resident
        for i, bag in enumerate(batches() if resident else with_next(batches())):
            yield bag, list(map(count, part.rows[i * size : (i + 1) * size]))

    def put(self, batch):
        return split(batch, self.mesh) if self._config.method.resident else batch

    def _largest(self):
        """(rows, columns) of cells that hold any of the slides."""
        found = [one for one in self._found.values() if not one.reason]
        cell_um = self._grid.mpp * self._grid.size_px
        shapes = [np.array(one.shape) * one.mpp / cell_um for one in found]
        return tuple(np.ceil(np.max(shapes, 0)).astype(int).tolist())


def with_next(batches: Iterator[Bag]) -> Iterator[Bag]:
    """Batches that know the one that comes after them, if any."""
    batches = iter(batches)
    this = next(batches, None)
    while this is not None:
        after = next(batches, None)
        yield this._replace(x=this.x._replace(after=after))
        this = after


def elsewhere(attrs: dict, slide: Slide) -> tuple[int, float]:
    """(side in px, um/px) of the tiles of TRIDENT's and CLAM's feature files."""
    try:
        side = float(attrs["patch_size_level0"])
        size_px = int(attrs.get("patch_size", side))
    except (KeyError, TypeError, ValueError, OverflowError):
        size_px, side = 0, 0.0
    if not (1 <= size_px <= MAX_SIDE_PX and 1 <= side <= MAX_SIDE_PX):
        raise SlideError(
            f"{slide.slide_id}: its features do not tell how large their tiles are"
        )
    return size_px, side * slide.mpp / size_px
