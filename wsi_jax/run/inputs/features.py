"""Input of methods that pool features of tiles."""

import functools
import itertools
import pathlib
from typing import Any

import jax
import numpy as np

from wsi_jax.config_fields import FieldError
from wsi_jax.data.bag_store import BagStore
from wsi_jax.data.bags import Bags, evaluation_bags, training_bags
from wsi_jax.data.features import read_features
from wsi_jax.run.extract.encode import CompiledEncoder, Encoded, encode_slides
from wsi_jax.run.inputs.base import Input, LoadedSlide, TilePositions
from wsi_jax.run.tiling import Tiling
from wsi_jax.slides.grid import Grid
from wsi_jax.slides.slide import Slide, SlideError
from wsi_jax.training.compile import split
from wsi_jax.training.mesh import share
from wsi_jax.types import Bag, bucket

MAX_SIDE_PX = 1 << 16  # largest tile that other tools' feature files may name


class FeatureInput(Input):
    """Features of tiles: from HDF5 files in training, from the slide in prediction.

    Args:
        method: config of the method.
        tiling: grid, tissue and encoder.
        mesh: devices over which batches are split.
        config: the experiment, where cohorts are read.
        files: folder of their feature files.
    """

    description = "pools features of tiles"

    def __init__(self, method, tiling, mesh, config=None, files=None):
        super().__init__(method, tiling, mesh, config)
        self._files, self._bags_of = files, {}

    @classmethod
    def check(cls, config):
        if config.precomputed:
            if not pathlib.Path(config.precomputed).is_dir():
                raise FieldError("precomputed", "no folder")
        elif config.encoder is None:
            name = type(config.method).__name__
            raise ValueError(f"{name} wants an encoder in the config file")
        else:
            config.check_trunks()

    @classmethod
    def tiling_config(cls, config):
        return Tiling(grid=config.grid, tissue=config.tissue, encoder=config.encoder)

    @classmethod
    def tilings(cls, config):
        return () if config.precomputed else (cls.tiling_config(config),)

    @classmethod
    def subtitle(cls, config):
        if config.precomputed:
            return "Precomputed features, trained on slide labels."
        return (
            f"{cls._tiles(config)}, {config.encoder.name} features, trained on slide "
            "labels."
        )

    @classmethod
    def _tiles(cls, config):
        return f"Tiles of {config.grid.size_px} px at {config.grid.mpp:g} um/px"

    def template(self, dim):
        return padded_bag(self._features(np.zeros((1, dim), np.float32)), 1)

    def one(self, slide, encode_batch, reading, meter):
        encoded = self._encode(
            slide, slide.yx, self.tiling.grid, encode_batch, reading, meter
        )
        meter.add(slides=1)
        return LoadedSlide(
            self._bag(encoded.x), encoded.kept, encoded.unreadable_note()
        )

    def training_batches(self, part, plan, start, weights=None):
        batches = training_bags(
            self._bags(part, weights),
            seed=plan.seed,
            batch_size=plan.batch,
            balanced=plan.balanced,
            start=start,
            **share(self.mesh),
        )
        return (batch.bag for batch in batches)

    def evaluation_batches(self, part):
        bags, size = self._bags(part), self._config.train.batch
        lengths = map(int, bags.lengths)
        for batch in evaluation_bags(bags, batch_size=size, **share(self.mesh)):
            rows = len(batch.slide) * share(self.mesh)["processes"]
            yield batch.bag, list(itertools.islice(lengths, rows))

    def put(self, batch):
        return split(batch, self.mesh)

    def positions(self, row, slide):
        features = read_features(self._path(row))
        size_px, mpp = self.tiling.grid.size_px, self.tiling.grid.mpp
        if self._config.precomputed:
            size_px, mpp = tile_size(features.attrs, slide)
        return TilePositions(features.yx, size_px, mpp)

    def fingerprints(self, part):
        names = [row.slide_id for row in part.rows]
        return dict(zip(names, self._bags(part).fingerprints, strict=True))

    def free_memory(self):
        self._bags_of.clear()  # may hold the features of a whole fold

    @functools.cached_property
    def _encoder(self) -> CompiledEncoder:
        return CompiledEncoder(self.tiling.encoder, self.encoder_mesh)

    def _features(self, low: np.ndarray) -> Any:
        """A batch's `x` of one slide, for features [n d] of its tiles."""
        return low

    def _bag(self, x: Any) -> Bag:
        """A slide's features as training reads them: float16, padded to a bucket."""
        half = jax.tree.map(lambda a: a.astype(np.float16), x)
        n = len(jax.tree.leaves(x)[0])
        return split(padded_bag(half, bucket(n, 256)), self.mesh)

    def _encode(self, slide, yx, grid: Grid, batch, reading, meter) -> Encoded:
        """Features of some tiles of a slide; refuses it where too few could be read."""
        (encoded,) = encode_slides(
            [slide],
            [yx],
            grid,
            self._encoder,
            batch=batch,
            reading=reading,
            meter=meter,
        )
        if refusal := encoded.refusal(reading.max_unreadable):
            raise SlideError(refusal)
        return encoded

    def _path(self, row):
        return self._files / f"{row.slide_id}.h5"

    def _bags(self, part, weights=None):
        """The bags of a part, kept: they may hold features in memory."""
        key = tuple(row.slide_id for row in part.rows), weights is None
        if key not in self._bags_of:
            self._bags_of[key] = self._open(part.rows, part.targets, weights)
        self.dim = self._bags_of[key].d
        return self._bags_of[key]

    def _open(self, rows, targets, weights) -> BagStore:
        paths = [self._path(row) for row in rows]
        return Bags(paths, targets, weights, self._config.loading)


def padded_bag(x: Any, length: int) -> Bag:
    """One slide's features, an array or several, as a padded batch."""
    n = len(jax.tree.leaves(x)[0])
    pad = lambda a: np.pad(a, [(0, length - n)] + [(0, 0)] * (a.ndim - 1))[None]
    mask = np.arange(length) < n
    target, weight = np.zeros(1, np.int32), np.ones(1, np.float32)
    return Bag(jax.tree.map(pad, x), mask[None], target, weight)


def tile_size(attrs: dict, slide: Slide) -> tuple[int, float]:
    """(side in px, um/px) of the tiles in a feature file of TRIDENT or CLAM."""
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
