"""Input of methods that zoom: features of tiles and of the children of each."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from wsi_jax.config_fields import FieldError
from wsi_jax.data.cohort import Cohort
from wsi_jax.data.distilled import DistilledBags, is_distilled, write_distilled
from wsi_jax.data.features import read_coords
from wsi_jax.data.two_level_bags import TwoLevelBags, pair
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.provenance import config_hash
from wsi_jax.run.inputs.base import LoadedSlide, TilePositions
from wsi_jax.run.inputs.features import FeatureInput
from wsi_jax.slides.grid import children
from wsi_jax.slides.slide import SlideError
from wsi_jax.training.checkpoint import digest
from wsi_jax.training.flops import executed
from wsi_jax.training.mesh import own_rows, rows_here, share
from wsi_jax.training.processes import add_up, agree, meet
from wsi_jax.types import TwoLevelFeatures


class TwoLevelInput(FeatureInput):
    """Features of tiles and of their children.

    Args:
        method: config of the method.
        tiling: grid, tissue and encoder.
        mesh: devices over which batches are split.
        config: the experiment, where cohorts are read.
        files: folder of the feature files of tiles.
        finer_files: folder of the feature files of their children.
    """

    description = "reads features of tiles at two resolutions"

    def __init__(self, method, tiling, mesh, config=None, files=None, finer_files=None):
        super().__init__(method, tiling, mesh, config, files)
        self._finer_files, self._k = finer_files, method.children

    @classmethod
    def check(cls, config):
        name, k = type(config.method).__name__, config.method.children
        if config.precomputed:
            reason = f"{name} wants tiles and children; leave it empty"
            raise FieldError("precomputed", reason)
        super().check(config)
        if k < 2:
            raise FieldError("method.children", "at least 2, to a side of a tile")
        if config.grid.overlap_px:
            raise FieldError("grid.overlap_px", "tiles share no children")
        if config.loading.max_tiles is not None:
            reason = f"{name} reads all tiles of a slide; leave it None"
            raise FieldError("loading.max_tiles", reason)

    @classmethod
    def mpps(cls, method, grid):
        return grid.mpp / method.children, grid.mpp

    @classmethod
    def tiling_config(cls, config):
        tiling = super().tiling_config(config)
        return dataclasses.replace(tiling, reads=cls.mpps(config.method, config.grid))

    @classmethod
    def tilings(cls, config):
        tiling = cls.tiling_config(config)
        return tiling, dataclasses.replace(tiling, children=config.method.children)

    @classmethod
    def _tiles(cls, config):
        k, (fine, _) = config.method.children, cls.mpps(config.method, config.grid)
        tiles = super()._tiles(config)
        return f"{tiles} and the {k} x {k} at {fine:g} um/px that fill each"

    def one(self, slide, encode_batch, reading, meter):
        grid, k = self.tiling.grid, self._k
        finer = dataclasses.replace(grid, mpp=grid.mpp / k)
        below = children(slide.yx, grid.size_px, k)
        low = self._encode(slide, slide.yx, grid, encode_batch, reading, meter)
        high = self._encode(slide, below, finer, encode_batch, reading, meter)
        meter.add(slides=1)
        row = np.full(len(below), -1)
        row[high.kept] = np.arange(len(high.kept))
        row = row.reshape(-1, k * k)[low.kept]
        whole = (row >= 0).all(1)
        if not whole.any():
            raise SlideError(
                f"{high.unreadable_note()}; no tile of which all children were read"
            )
        bag = self._bag(TwoLevelFeatures(low.x[whole], high.x[row[whole]]))
        note = "; ".join(filter(None, (low.unreadable_note(), high.unreadable_note())))
        return LoadedSlide(bag, low.kept[whole], note)

    def tiles_read(self, n, zooms=None):
        return n + self._k**2 * (n if zooms is None else zooms)

    def positions(self, row, slide):
        del slide
        rows, low = self._kept(row)
        grid = self.tiling.grid
        return TilePositions(low.yx[rows], grid.size_px, grid.mpp)

    def distilled(
        self,
        parts: Sequence[Cohort],
        distil: Callable,
        params: Any,
        folder: pathlib.Path,
        *,
        advance: Callable,
        meter: Meter,
        unit: str,
    ) -> "DistilledInput":
        """The same slides once a stage has distilled them; what is missing is made.

        Files made with other parameters or features are made anew.

        Args:
            parts: parts of the cohort: each slide is in one.
            distil: (params, batch, key) -> x, compiled.
            params: parameters of the trained stage.
            folder: where the files are.
            advance: moves a progress bar.
            meter: is charged.
            unit: name in the meter's account; each part has a unit below it.
        """
        self.free_memory()  # later stages do not read the children's features
        made_by, expected = digest(params), {}
        path_of = lambda name: folder / f"{name}.h5"
        for number, part in enumerate(parts):
            names = [row.slide_id for row in part.rows]
            prints = [config_hash(made_by, p) for p in self._bags(part).fingerprints]
            expected |= dict(zip(names, prints, strict=True))
            todo = {n for n in names if not is_distilled(path_of(n), expected[n])}
            advance(len(names) - len(todo), before=True)
            if not agree(bool(todo)):
                continue
            # All batches are run: the last digit of a slide's result may depend on the
            # slides beside it.
            order, own = iter(names), f"{unit}/{number}"
            meter.begin(own)
            for batch, lengths in self.evaluation_batches(part):
                before = executed()
                x = distil(params, self.put(batch), jax.random.key(0))
                x = rows_here(x, self.mesh)
                after = executed()
                spent = {name: after[name] - before[name] for name in after}
                meter.record(own, **add_up(spent))
                named = list(zip(lengths, order, strict=False))
                rows = len(batch.weight) * share(self.mesh)["processes"]
                rows = own_rows(self.mesh, rows)
                for i, (n, name) in enumerate(named[rows]):
                    if name in todo:
                        one = jax.tree.map(lambda a, i=i, n=n: a[i, :n], x)
                        write_distilled(path_of(name), one, expected[name])
                        advance(1)
        meet("distilled")  # files of other processes are there
        self.free_memory()
        return DistilledInput(self, folder, expected)

    def _features(self, low):
        return TwoLevelFeatures(low, low[:, None].repeat(self._k**2, 1))

    def _open(self, rows, targets, weights):
        low = [self._path(row) for row in rows]
        high = [self._finer_files / path.name for path in low]
        return TwoLevelBags(low, high, self._k, targets, weights, self._config.loading)

    def _kept(self, row):
        """Indices of the tiles read with all their children, and all tiles."""
        path = self._path(row)
        low = read_coords(path)
        return pair(low, read_coords(self._finer_files / path.name), self._k)[0], low


class DistilledInput(TwoLevelInput):
    """Features of tiles, and one vector a tile distilled from its children.

    Args:
        source: the input that they were distilled from.
        folder: where the files are.
        fingerprints: hash of each slide's file, by its name.
    """

    def __init__(self, source: TwoLevelInput, folder: pathlib.Path, fingerprints: dict):
        super().__init__(
            source.method, source.tiling, source.mesh, source._config, source._files,
            source._finer_files,
        )  # fmt: skip
        self._folder, self._fingerprints = folder, fingerprints
        self._compiled = source._compiled

    def _open(self, rows, targets, weights):
        names = [row.slide_id for row in rows]
        return DistilledBags(
            [self._folder / f"{name}.h5" for name in names],
            [self._fingerprints[name] for name in names],
            targets,
            weights,
            self._config.loading,
        )
