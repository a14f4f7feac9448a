"""Tiles in a folder: their index, clusters of origin, files, and shapes."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

INDEX = "index.csv"
COLUMNS = ("file", "class", "cluster")
PARTS = ("train", "train", "test", "encoder")


def split_of(cluster: str) -> str:
    """The part a cluster of source tiles belongs to, for ever.

    Tiles of one cluster share their origin: one photographed field, or one seed of the
    texture generator. `sha256("split:" + cluster)` mod 4 sends a cluster, such as
    "colon_n:158", to slides of training and validation (0, 1), to test slides (2), or
    to the pre-training of encoders only (3), so that no cohort ever mixes them.
    """
    digest = hashlib.sha256(f"split:{cluster}".encode()).digest()
    return PARTS[int.from_bytes(digest, "big") % 4]


def read_tile(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image file."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def misshapen(
    tiles: Sequence[UInt8[np.ndarray, "h w 3"]],
) -> Iterator[tuple[int, str]]:
    """Tiles of another shape than most, or not square: index and reason of each."""
    shapes = Counter(tile.shape for tile in tiles)
    usual = max(shapes, key=lambda shape: shapes[shape], default=None)
    for i, tile in enumerate(tiles):
        if tile.shape != usual or usual[0] != usual[1]:
            own, others = (f"{w}x{h} px" for h, w, _ in (tile.shape, usual))
            yield i, f"{own}; tiles are square and alike ({others})"
