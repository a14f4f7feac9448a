"""Bags of distilled features: what a trained stage makes of the children of tiles."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Shaped

from wsi_jax.data.bag_store import BagStore, Loading
from wsi_jax.data.hdf5 import FeatureError, dataset, opened, read_all, write_whole
from wsi_jax.slides.file_faults import reads_file
from wsi_jax.types import TwoLevelFeatures


def write_distilled(
    path: str | os.PathLike, x: TwoLevelFeatures, fingerprint: str
) -> None:
    """Writes one slide's arrays, `low` and `high` both [n d], as they are.

    The fingerprint is of the parameters and the features that it was made with.
    FeatureError: a feature is not finite. OSError: the disk is full or not to be
    written to; it names the file.
    """
    bad = [name for name, array in x._asdict().items() if not np.isfinite(array).all()]
    if bad:
        raise FeatureError(
            f"{path}: {' and '.join(bad)} distilled to what is not finite; lower the "
            "learning rate of the stage that distils, in a new --config.run_dir"
        )

    def write_datasets(f):
        f.attrs["fingerprint"] = fingerprint
        for name, array in x._asdict().items():
            f[name] = array

    write_whole(path, write_datasets)


@reads_file
def is_distilled(path: str | os.PathLike, fingerprint: str) -> bool:
    """Whether a file is there, complete, and made with this."""
    try:
        with opened(path) as f:
            if f.attrs["fingerprint"] != fingerprint:
                return False
            for name in TwoLevelFeatures._fields:
                read_all(dataset(f, name))
    except FeatureError:
        return False
    return True


class DistilledBags(BagStore):
    """Tiles [n d], and what was distilled from the children of each [n d].

    Attributes:
        fingerprints: [slides], of what decides each slide's arrays.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        fingerprints: Sequence[str],
        targets: Shaped[np.ndarray, "slides ..."],
        weights: Float32[np.ndarray, " slides"] | None,
        loading: Loading,
    ):
        """Reads the header of every file; of `loading`, `max_tiles` must be None.

        FeatureError: a file is damaged, or has another fingerprint.
        """
        self.fingerprints, lengths, rows = list(fingerprints), [], []
        for path, expected in zip(paths, fingerprints, strict=True):
            with opened(path) as f:
                if (actual := f.attrs["fingerprint"]) != expected:
                    raise FeatureError(
                        f"{path} was made with parameters and features {actual}, and "
                        f"these are {expected}; delete {pathlib.Path(path).parent} and "
                        "give the command again"
                    )
                parts = [dataset(f, name) for name in TwoLevelFeatures._fields]
                lengths.append(len(parts[0]))
                rows = [(part.shape[1:], part.dtype) for part in parts]
        super().__init__(paths, targets, weights, lengths, rows, loading)

    def read(self, slide):
        return _read(self.paths[slide])

    def pack(self, low, high):
        return TwoLevelFeatures(low, high)


@reads_file
def _read(path):
    with opened(path) as f:
        return tuple(
            read_all(dataset(f, name), verify=False)
            for name in TwoLevelFeatures._fields
        )
