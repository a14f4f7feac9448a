"""PatchCamelyon from TensorFlow Datasets: tiles of lymph nodes, with tumour or without.

Its training and validation tiles are of CAMELYON16's training slides, its test tiles of
CAMELYON16's test slides (Veeling et al. 2018, arXiv:1806.03962).
"""

import itertools
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments.pretraining.tile_sets import Tiles, TileSets, check_mpp
from wsi_jax.data.csv_table import CohortError
from wsi_jax.data.tensorflow import import_tf
from wsi_jax.slides.pyramid_writer import rescale

MPP = 0.972  # four times 0.243
CLASSES = ("normal", "tumor")
SPLITS = ("train", "validation", "test")
# TFDS does not tell a tile's slide: the encoder has learnt from any that it may be of.
TRAINING_IDS = tuple(
    f"{kind}_{number:03}"
    for kind, last in (("normal", 160), ("tumor", 111))
    for number in range(1, last + 1)
)


def load_patch_camelyon(
    data_dir: str | os.PathLike | None, *, mpp: float, most: int | None = None
) -> TileSets:
    """Reads PatchCamelyon into memory: 27 kB a tile, 9 GB in all at its own mpp.

    A tile is its own cluster, since TFDS does not tell its slide: intervals on the test
    tiles are narrower than they should be.

    Args:
        data_dir: folder of TFDS, where it was prepared; None for TFDS's own choice.
        mpp: um/px that tiles are resampled to, antialiased; their own is 0.972.
        most: tiles of each split, the first ones; None for all.

    Raises:
        CohortError: it is not prepared there, or `mpp` is finer than its own.
    """
    check_mpp("PatchCamelyon's tiles of", MPP, mpp)
    import_tf()
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder("patch_camelyon", data_dir=data_dir)
        parts = [builder.as_dataset(split=s, shuffle_files=False) for s in SPLITS]
    except AssertionError as error:  # what TFDS raises for data that is not prepared
        raise CohortError(
            f"PatchCamelyon is not in {data_dir or 'the data_dir of TFDS'}; prepare it "
            "with `tfds build patch_camelyon` (7.5 GB), or name its folder with "
            "--config.data_dir"
        ) from error
    first = -1 if most is None else most
    sets = [_read(tfds.as_numpy(data.take(first)), mpp) for data in parts]
    return TileSets(*sets, CLASSES, TRAINING_IDS)


def _read(records: Iterable[dict[str, Any]], mpp: float) -> Tiles:
    labels, names = [], []

    def resampled():
        for one in records:
            labels.append(one["label"])
            names.append(one["id"].decode())
            yield rescale(one["image"], MPP, mpp)

    tiles = resampled()
    first = next(tiles)
    # One array that grows: tiles in a list would be held twice while they are stacked.
    dtype = np.dtype((np.uint8, first.shape))
    pixels = np.fromiter(itertools.chain([first], tiles), dtype)
    return Tiles(pixels, np.array(labels, np.int32), tuple(names), tuple(names))
