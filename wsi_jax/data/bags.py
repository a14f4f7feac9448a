"""Batches of padded bags; and bags of feature files."""

import concurrent.futures
import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Shaped

from wsi_jax.data import features
from wsi_jax.data.bag_store import BagStore, Loading
from wsi_jax.data.features import FeatureError
from wsi_jax.data.order import (
    draw_tiles,
    filled_up,
    process_rows,
    slides_of_batch,
)
from wsi_jax.data.prefetch import parallel_batches
from wsi_jax.types import Bag, bucket

ENDLESS = np.iinfo(np.int64).max


class BagBatch(NamedTuple):
    """A padded batch for the method, in numpy arrays, and whose it is.

    `slide` [b] is the index into the bags; -1 for a row that only fills the batch.
    """

    bag: Bag
    slide: Int32[np.ndarray, " b"]


class Bags(BagStore):
    """Features of tiles, [n d] float16, from feature files."""

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        targets: Shaped[np.ndarray, "slides ..."],
        weights: Float32[np.ndarray, " slides"] | None,
        loading: Loading,
    ):
        """Reads the header of every file; a FeatureError lists all that are unfit."""
        lengths, d = feature_shapes(paths)
        rows = [((d,), np.float16)]
        super().__init__(paths, targets, weights, lengths, rows, loading)

    @functools.cached_property
    def fingerprints(self) -> list[str]:
        """[slides], of what decides each slide's features; of files that do not tell
        it, as of other tools, of the features themselves."""
        with concurrent.futures.ThreadPoolExecutor(self.loading.threads) as pool:
            return list(pool.map(self._fingerprint, range(len(self))))

    def _fingerprint(self, slide):
        made_with = features.read_coords(self.paths[slide]).attrs.get("config_hash")
        if made_with is not None:
            return str(made_with)
        (x,) = self.read(slide)  # and not kept: other bags of these files are
        return hashlib.sha256(np.ascontiguousarray(x)).hexdigest()[:16]

    def read(self, slide):
        return (features.read_features(self.paths[slide], verify=False).x,)

    def pack(self, x):
        return x


def training_bags(
    bags: BagStore,
    *,
    seed: int,
    batch_size: int,
    balanced: bool,
    start: int,
    devices: int = 1,
    process: int = 0,
    processes: int = 1,
) -> Iterator[BagBatch]:
    """Batches without end; batch i is a function of the seed and i alone.

    The padded length is that of the longest bag of the whole batch, of `batch_size`
    slides over all processes; each process loads its rows of every batch. Rows of no
    weight fill it up to a multiple of the devices. `balanced`, classes take turns
    rather than slides. To resume, start at that step.
    """

    def indices(step):
        at = slides_of_batch(seed, step, bags.targets, batch_size, balanced)
        return filled_up(at, devices, -1)

    rows = process_rows(-(-batch_size // devices) * devices, process, processes)
    steps = range(start, ENDLESS // (rows.stop - rows.start))
    return _batches(bags, indices, seed, rows, steps)


def evaluation_bags(
    bags: BagStore,
    *,
    batch_size: int,
    devices: int = 1,
    process: int = 0,
    processes: int = 1,
) -> Iterator[BagBatch]:
    """Every slide once, whole and in order; the last batch is filled with weight 0.

    Batches are made larger, up to a multiple of the devices.
    """
    batch_size = -(-batch_size // devices) * devices

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
        arrays = tuple(np.zeros((length, *shape), dtype) for shape, dtype in bags.rows)
        if slide >= 0:
            whole = int(bags.lengths[slide])
            drawn = draw_tiles(seed, step, slide, whole, n) if n < whole else ...
            for padded, array in zip(arrays, bags.load(slide), strict=True):
                padded[:n] = array[drawn]
        return arrays

    stacks = parallel_batches(
        read,
        range(steps.start * n_rows, steps.stop * n_rows),
        group=n_rows,
        threads=bags.loading.threads,
        prefetch=bags.loading.prefetch,
    )
    with contextlib.closing(stacks):
        for step, arrays in zip(steps, stacks, strict=True):
            index, kept, length = plan(step)
            mask = np.arange(length) < kept[:, None]
            target, weight = bags.targets[index], bags.weights[index]
            target[index < 0] = weight[index < 0] = 0
            bag = Bag(bags.pack(*arrays), mask, target, weight)
            yield BagBatch(bag, index.astype(np.int32))


def feature_shapes(paths: Sequence[str | os.PathLike]) -> tuple[list[int], int]:
    """Tiles of each feature file, and features of a tile of all of them.

    FeatureError: listing every file that cannot be used.
    """
    shapes, faults = [], []
    for path in paths:
        try:
            shapes.append(features.feature_shape(path))
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
    return [n for n, _ in shapes], shapes[0][1]
