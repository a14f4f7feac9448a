"""Batches of padded bags from feature files."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, Float32, Int32

from wsi_jax.data.features import FeatureError, feature_shape, read_features
from wsi_jax.data.order import bag_batch_indices, draw_tiles, process_rows
from wsi_jax.data.parallel import parallel_batches
from wsi_jax.types import Bag, bucket

GIB = 1 << 30
ENDLESS = np.iinfo(np.int64).max


@dataclasses.dataclass(kw_only=True)
class Loading:
    """How bags are loaded and padded.

    Attributes:
        max_tiles: of a slide in a training batch, drawn anew each step; None for all.
        min_bucket: shortest padded length; bags are padded to this times a power of 2,
            so that a cohort compiles a handful of programs and not one per slide.
        cache_gib: features are kept in memory where all of them fit in this much.
        threads: that read files.
        prefetch: batches kept ready.
    """

    max_tiles: int | None = None
    min_bucket: int = 256
    cache_gib: float = 8.0
    threads: int = 8
    prefetch: int = 2


class BagBatch(NamedTuple):
    """A padded batch and whose it is.

    Attributes:
        bag: for the method: numpy arrays, features in float16.
        slide: [b], index into the bags; -1 for a row that only fills the batch.
    """

    bag: Bag
    slide: Int32[np.ndarray, " b"]


class Bags:
    """The feature files of some slides, with their labels, not yet loaded.

    Attributes:
        labels: [slides], index of each slide's class.
        weights: [slides], of each slide in the loss.
        lengths: [slides], tiles of each slide.
        d: features of a tile.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        labels: Int32[np.ndarray, " slides"],
        weights: Float32[np.ndarray, " slides"] | None,
        loading: Loading,
    ):
        """Reads the header of every file.

        Args:
            paths: of the feature files.
            labels: index of each slide's class.
            weights: of each slide in the loss; None for all alike.
            loading: how to load and pad.

        Raises:
            FeatureError: listing every file that cannot be used.
        """
        shapes = _shapes(paths)
        self.paths, self.loading = tuple(paths), loading
        self.labels = np.asarray(labels, np.int32)
        self.weights = np.ones(len(paths), np.float32) if weights is None else weights
        self.lengths = np.array([n for n, _ in shapes], np.int64)
        self.d = shapes[0][1]
        size = 2 * self.d * int(self.lengths.sum())
        self._cache = {} if size <= loading.cache_gib * GIB else None

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, slide: int) -> Float16[np.ndarray, "n d"]:
        """The features of one slide; from memory where the cohort fits into it."""
        if self._cache is not None and slide in self._cache:
            return self._cache[slide]
        x = read_features(self.paths[slide]).x
        if len(x) != self.lengths[slide]:
            raise FeatureError(
                f"{self.paths[slide]}: had {self.lengths[slide]} tiles and now has "
                f"{len(x)}; do not extract features while they are trained on"
            )
        if self._cache is not None:
            self._cache[slide] = x
        return x


def training_bags(
    bags: Bags,
    *,
    seed: int,
    batch_size: int,
    balanced: bool,
    start: int,
    process: int,
    processes: int,
) -> Iterator[BagBatch]:
    """Batches without end; batch i is a function of the seed and i alone.

    The padded length is that of the longest bag of the whole batch, on every process.

    Args:
        bags: to draw from.
        seed: of the order and of the tiles drawn.
        batch_size: slides per batch, over all processes.
        balanced: whether classes take turns rather than slides.
        start: the first batch: the step to resume at.
        process: which of the `processes` this is; it loads its rows of every batch.
        processes: that share each batch.

    Raises:
        ValueError: the batch does not divide among the processes.
    """

    def indices(step):
        return bag_batch_indices(seed, step, bags.labels, batch_size, balanced)

    rows = process_rows(batch_size, process, processes)
    return _batches(bags, indices, seed, rows, range(start, ENDLESS // batch_size))


def evaluation_bags(
    bags: Bags, *, batch_size: int, process: int, processes: int
) -> Iterator[BagBatch]:
    """Every slide once, whole and in order; the last batch is filled with weight 0.

    Args:
        bags: to go through.
        batch_size: slides per batch, over all processes.
        process: which of the `processes` this is; it loads its rows of every batch.
        processes: that share each batch.

    Raises:
        ValueError: the batch does not divide among the processes.
    """

    def indices(step):
        index = np.arange(step * batch_size, (step + 1) * batch_size)
        return np.where(index < len(bags), index, -1)

    rows = process_rows(batch_size, process, processes)
    return _batches(bags, indices, None, rows, range(-(-len(bags) // batch_size)))


def _batches(bags, indices, seed, rows, steps):
    """The rows of each step's batch; a seed draws max_tiles, None keeps all tiles."""
    most = None if seed is None else bags.loading.max_tiles
    n_rows = rows.stop - rows.start

    def plan(step):
        index = indices(step)
        kept = np.where(index >= 0, bags.lengths[index], 0)
        kept = kept if most is None else np.minimum(kept, most)
        length = bucket(int(kept.max()), bags.loading.min_bucket)
        return index[rows], kept[rows], length

    def read(i):
        step, row = divmod(i, n_rows)
        index, kept, length = plan(step)
        slide, n = int(index[row]), int(kept[row])
        x = np.zeros((length, bags.d), np.float16)
        if slide >= 0:
            found = bags.load(slide)
            if n < len(found):
                found = found[draw_tiles(seed, step, slide, len(found), n)]
            x[:n] = found
        return (x,)

    stacks = parallel_batches(
        read,
        range(steps.start * n_rows, steps.stop * n_rows),
        dtypes=(np.float16,),
        group=n_rows,
        threads=bags.loading.threads,
        prefetch=bags.loading.prefetch,
    )
    with contextlib.closing(stacks):
        for step, (x,) in zip(steps, stacks, strict=True):
            index, kept, length = plan(step)
            real = index >= 0
            bag = Bag(
                x=x,
                mask=np.arange(length) < kept[:, None],
                label=np.where(real, bags.labels[index], 0).astype(np.int32),
                weight=np.where(real, bags.weights[index], 0).astype(np.float32),
            )
            yield BagBatch(bag, index.astype(np.int32))


def _shapes(paths):
    shapes, faults = [], []
    for path in paths:
        try:
            shapes.append(feature_shape(path))
        except FeatureError as error:
            faults.append(str(error))
    widths = {d for _, d in shapes}
    if len(widths) > 1:
        odd = [f"{path} has {d}" for path, (_, d) in zip(paths, shapes, strict=False)]
        faults.append(f"features of one encoder have one width: {', '.join(odd)}")
    if faults:
        raise FeatureError("\n".join(faults))
    if not shapes:
        raise FeatureError("no feature files; extract features or mend the splits")
    return shapes
