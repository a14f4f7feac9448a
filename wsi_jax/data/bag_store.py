"""Stores of bags: arrays of slides on disk, in memory where they fit."""

import abc
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Shaped

from wsi_jax.config_fields import COUNT
from wsi_jax.data.hdf5 import FeatureError

GIB = 1 << 30


@dataclasses.dataclass(kw_only=True)
class Loading:
    """How bags are loaded and padded.

    Attributes:
        max_tiles: tiles of a slide in a training batch, drawn each step; None for all.
        min_bucket: shortest padded length; bags are padded to this times a power of 2,
            so that a cohort compiles a handful of programs and not one per slide.
        cache_gib: features are kept in memory where all of them fit in this much.
        threads: threads that read files.
        prefetch: batches kept ready.
    """

    max_tiles: int | None = None
    min_bucket: int = 256
    cache_gib: float = 8.0
    threads: int = 8
    prefetch: int = 2

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(
        ("max_tiles", "min_bucket", "threads", "prefetch"), COUNT
    )


class BagStore(abc.ABC):
    """The bags of some slides on disk, with their targets, not yet loaded.

    Attributes:
        paths: a file of each slide.
        targets: [slides ...], what is to be predicted of each.
        weights: [slides], of each slide in the loss; all alike by default.
        lengths: [slides], tiles of each slide.
        rows: (shape, dtype) of what each array of a slide has for a tile.
        loading: how to load and pad.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        targets: Shaped[np.ndarray, "slides ..."],
        weights: Float32[np.ndarray, " slides"] | None,
        lengths: Sequence[int],
        rows: Sequence[tuple[tuple[int, ...], Any]],
        loading: Loading,
    ):
        self.paths, self.rows, self.loading = tuple(paths), tuple(rows), loading
        self.targets = np.asarray(targets)
        self.weights = np.ones(len(paths), np.float32) if weights is None else weights
        self.lengths = np.asarray(lengths, np.int64)
        tile = sum(np.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in rows)
        size = float(tile) * int(self.lengths.sum())
        self._cache = {} if size <= loading.cache_gib * GIB else None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def d(self) -> int:
        """Features of a tile."""
        return self.rows[0][0][-1]

    def load(self, slide: int) -> tuple[Shaped[np.ndarray, "n ..."], ...]:
        """The arrays of one slide; from memory where the cohort fits into it.

        FeatureError: its file is damaged or has changed.
        """
        if self._cache is not None and slide in self._cache:
            return self._cache[slide]
        arrays = self.read(slide)
        if len(arrays[0]) != self.lengths[slide]:
            raise FeatureError(
                f"{self.paths[slide]}: had {self.lengths[slide]} tiles and now has "
                f"{len(arrays[0])}; do not extract features while they are trained on"
            )
        if self._cache is not None:
            self._cache[slide] = arrays
        return arrays

    @abc.abstractmethod
    def read(self, slide: int) -> tuple[Shaped[np.ndarray, "n ..."], ...]:
        """The arrays of one slide, from disk."""

    @abc.abstractmethod
    def pack(self, *arrays: Shaped[np.ndarray, "b n ..."]) -> Any:
        """The `x` of a Bag, of the arrays padded and stacked."""
