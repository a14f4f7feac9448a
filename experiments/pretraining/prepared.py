"""Tissue tiles of a cohort as records of TensorFlow Datasets: many tiles to a file.

For training from network storage, where a slide's scattered reads are slow. Records are
ArrayRecord files, shuffled when written and read at random: the order of a training is
a function of its seed, and resumes at any step. Any tool reads them that reads TFDS.
"""

import contextlib
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from experiments.pretraining.tile_sets import Tiles, TileSets
from wsi_jax.data.cohort import SPLITS
from wsi_jax.data.csv_table import CohortError
from wsi_jax.data.order import process_rows, tile_order
from wsi_jax.data.prefetch import parallel_batches
from wsi_jax.data.tensorflow import import_tfds
from wsi_jax.data.tiles import Reading
from wsi_jax.slides.pyramid import rescale

NAME, VERSION = "tiles", "1.0.0"
ENDLESS = np.iinfo(np.int64).max


class PreparedBatch(NamedTuple):
    """Tiles of any slides.

    Attributes:
        pixels: zeros where not `ok`.
        label: index of the class of the tile's slide.
        yx: top-left corner, level-0 pixels.
        index: of the record in its part.
        ok: False where there is no tile, only the end of a pass.
    """

    pixels: UInt8[np.ndarray, "b h w 3"]
    label: Int32[np.ndarray, " b"]
    yx: Int32[np.ndarray, "b 2"]
    index: Int32[np.ndarray, " b"]
    ok: Bool[np.ndarray, " b"]


class PreparedTiles:
    """The tiles of one split, or one process's even part of them; nothing read yet.

    Args:
        folder: that was prepared.
        split: "train", "val" or "test".
        process: which of the `processes` this is.
        processes: that share the split; each has a part of its own.

    Raises:
        CohortError: there are no whole tiles, or none of this split.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str,
        *,
        process: int = 0,
        processes: int = 1,
    ):
        tfds, builder = import_tfds(), opened(folder)
        if split not in builder.info.splits:
            raise CohortError(f"{folder}: no tiles in split {split!r}")
        part = tfds.even_splits(split, processes)[process]
        self.classes = tuple(builder.info.metadata["classes"])
        self.mpp = float(builder.info.metadata["mpp"])
        self.size_px = builder.info.features["tile"].shape[0]
        self.processes = processes
        self._records = builder.as_data_source(split=part)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A record: tile, label, slide_id, patient_id, yx, mpp."""
        one = self._records[index]
        told = {name: one[name].decode() for name in ("slide_id", "patient_id")}
        return one | told

    def batches(
        self, *, batch_size: int, reading: Reading, seed: int | None, start: int = 0
    ) -> Iterator[PreparedBatch]:
        """One pass in the order of the records; with a seed passes without end.

        Batch i is a function of the seed and i alone: to resume, start there.

        Args:
            batch_size: tiles per batch, over all processes.
            reading: threads and buffers.
            seed: of a new order for each pass.
            start: the first batch to yield.

        Raises:
            ValueError: the batch does not divide among the processes.
        """
        rows = process_rows(batch_size, 0, self.processes)
        n, size = len(self), rows.stop - rows.start
        stop = -(-n // size) if seed is None else ENDLESS // size
        order = lambda step: tile_order(n, size, step, seed)

        def read(i):
            step, place = divmod(i, size)
            index = int(order(step)[place])
            if index < 0:
                shape = (self.size_px, self.size_px, 3)
                return np.zeros(shape, np.uint8), np.int32(0), np.zeros(2, np.int32)
            one = self._records[index]
            return one["tile"], np.int32(one["label"]), one["yx"]

        stacks = parallel_batches(
            read,
            range(start * size, stop * size),
            dtypes=(np.uint8, np.int32, np.int32),
            group=size,
            threads=reading.threads,
            prefetch=reading.prefetch,
        )
        with contextlib.closing(stacks):
            for step, arrays in zip(itertools.count(start), stacks, strict=False):
                index = order(step).astype(np.int32)
                yield PreparedBatch(*arrays, index, index >= 0)


def load_prepared(
    folder: str | os.PathLike, *, mpp: float, most: int | None = None
) -> TileSets:
    """Reads all splits into memory; a tile has its slide's label, its patient clusters.

    Args:
        folder: that was prepared.
        mpp: that tiles are resampled to, antialiased.
        most: tiles of each split, the first ones; None for all.

    Raises:
        CohortError: no whole tiles, a split missing, or `mpp` is finer than theirs.
    """
    parts = [PreparedTiles(folder, split) for split in SPLITS]
    if mpp < parts[0].mpp:
        raise CohortError(
            f"{folder}: tiles of {parts[0].mpp:g} um/px hold no detail of {mpp:g}; "
            f"raise --config.mpp to {parts[0].mpp:g} or more"
        )
    sets = [_in_memory(part, mpp, most) for part in parts]
    slides = (name.rpartition("_y")[0] for part in sets[:2] for name in part.name)
    patients = (cluster for part in sets[:2] for cluster in part.cluster)
    return TileSets(*sets, parts[0].classes, tuple(sorted({*slides, *patients})))


def _in_memory(part: PreparedTiles, mpp: float, most: int | None) -> Tiles:
    n = len(part) if most is None else min(most, len(part))
    found = [part[i] for i in range(n)]
    place = lambda one: "{}_y{}_x{}".format(one["slide_id"], *one["yx"].tolist())
    return Tiles(
        pixels=np.stack([rescale(one["tile"], part.mpp, mpp) for one in found]),
        label=np.array([one["label"] for one in found], np.int32),
        cluster=tuple(one["patient_id"] for one in found),
        name=tuple(map(place, found)),
    )


def place(folder: str | os.PathLike) -> pathlib.Path:
    """Where TFDS keeps the tiles of a folder; there once all are."""
    return pathlib.Path(folder) / NAME / VERSION


def opened(folder: str | os.PathLike) -> Any:
    """TFDS's builder of a folder, to read from.

    Raises:
        CohortError: there are no whole tiles.
    """
    if not place(folder).is_dir():
        raise CohortError(
            f"{folder}: no prepared tiles, or not all; run "
            "experiments.pretraining.prepare_tiles"
        )
    return import_tfds().builder_from_directory(place(folder))
