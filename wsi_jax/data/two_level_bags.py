"""Bags at two resolutions: the tiles of a grid, and the children that fill each."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int, Int64, Shaped

from wsi_jax.data import features
from wsi_jax.data.bag_store import BagStore, Loading
from wsi_jax.data.bags import feature_shapes
from wsi_jax.data.features import Coords, FeatureError, Features, read_coords
from wsi_jax.provenance import config_hash
from wsi_jax.slides.grid import children
from wsi_jax.types import TwoLevelFeatures


class TwoLevelBags(BagStore):
    """Features of tiles [n d] and of their children [n k*k d], float16.

    A tile counts where it was read and so were all of its children.

    Attributes:
        fingerprints: [slides], of what decides each slide's features.
    """

    def __init__(
        self,
        low: Sequence[str | os.PathLike],
        high: Sequence[str | os.PathLike],
        k: int,
        targets: Shaped[np.ndarray, "slides ..."],
        weights: Float32[np.ndarray, " slides"] | None,
        loading: Loading,
    ):
        """Reads where the tiles of every file lie; of `loading`, `max_tiles` is None.

        `low` are feature files of tiles, `high` of their children, `k` to a side.
        FeatureError: files that cannot be used, or do not belong together.
        """
        self.high, self.k = tuple(high), k
        _, d = feature_shapes(low)
        _, below = feature_shapes(high)
        if d != below:
            raise FeatureError(
                f"{low[0]} has {d} features a tile and {high[0]} has {below}; make "
                "both with one encoder"
            )
        lengths, self.fingerprints = [], []
        for path, finer in zip(low, high, strict=True):
            tiles, below = read_coords(path), read_coords(finer)
            lengths.append(len(pair(tiles, below, k)[0]))
            made_with = tiles.attrs["config_hash"], below.attrs["config_hash"]
            self.fingerprints.append(config_hash(*made_with, lengths[-1]))
        rows = [((d,), np.float16), ((k * k, d), np.float16)]
        super().__init__(low, targets, weights, lengths, rows, loading)

    def read(self, slide):
        low = features.read_features(self.paths[slide], verify=False)
        high = features.read_features(self.high[slide], verify=False)
        rows, below = pair(low, high, self.k)
        return low.x[rows], high.x[below]

    def pack(self, low, high):
        return TwoLevelFeatures(low, high)


def pair(
    low: Coords | Features, high: Coords | Features, k: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, "n m"]]:
    """The tiles of which all was read: their rows, and the rows of their children.

    `low` are tiles that do not overlap, `high` their children, `k` to a side, in any
    order. Returns rows of `low`, in its order, and of `high`: of m = k*k children row
    by row. FeatureError: they are not of one slide, one encoder and one grid.
    """
    _check_related(low.attrs, high.attrs, k)
    side = low.attrs["patch_size"] * low.attrs["target_mpp"] / low.attrs["mpp"]
    cells = np.rint(low.yx / side).astype(np.int64)
    wanted = _number(children(cells, 1, k)).reshape(-1, k * k)
    there = _number(np.rint(high.yx / (side / k)).astype(np.int64))
    kept = np.isin(wanted, there).all(1)
    order = np.argsort(there)
    below = order[np.searchsorted(there, wanted[kept], sorter=order)]
    return np.flatnonzero(kept), below


def _check_related(low, high, k):
    attributes = {
        "slide": (low["name"], high["name"]),
        "encoder": (low["encoder"], high["encoder"]),
        "um/px of level 0": (low["mpp"], high["mpp"]),
        "px to a side": (low["patch_size"], high["patch_size"]),
        "um/px of the children": (low["target_mpp"] / k, high["target_mpp"]),
    }
    for name, (one, other) in attributes.items():
        if one != other:
            raise FeatureError(
                f"features of {low['name']} and of the children of its tiles disagree, "
                f"{name}: {one} and {other}; extract both with one config"
            )


def _number(yx: Int[np.ndarray, "n 2"]) -> Int64[np.ndarray, " n"]:
    """One number for each place, in the order of rows."""
    return (yx[:, 0].astype(np.int64) << 32) + yx[:, 1]
