"""A slide's features on disk: HDF5 that CLAM and TRIDENT read, and theirs read here.

    features  (n, d) float16, contiguous    attributes: encoder, name, savetodir
    coords    (n, 2) int32, level-0 (x, y)  attributes: TRIDENT's, and our own below

float16 and contiguous because a whole slide is read at once: much faster than TRIDENT's
one-row float32 chunks, and half the bytes. Files that are truncated or no such files
are FeatureErrors.
"""

import dataclasses
import os
import pathlib
import zlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float16, Int, Int32

import wsi_jax
from wsi_jax.data import hdf5
from wsi_jax.data.hdf5 import FeatureError, dataset, opened, read_all
from wsi_jax.slides.file_faults import reads_file

FEATURE_NAMES = ("features", "feats")  # CLAM and TRIDENT; STAMP and mopadi


class Features(NamedTuple):
    """The features of one slide's tiles."""

    x: Float16[np.ndarray, "n d"]
    yx: Int32[np.ndarray, "n 2"]  # top-left corners, in level-0 pixels
    attrs: dict[str, Any]  # of both datasets


class Coords(NamedTuple):
    """All of a feature file but its features."""

    yx: Int32[np.ndarray, "n 2"]
    attrs: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureMetadata:
    """What made the features of a slide: the attributes of their file."""

    slide_id: str
    shape: tuple[int, int]  # (h, w) of level 0, in pixels
    mpp: float  # um/px of level 0
    target_mpp: float  # um/px at which the tiles were read
    size_px: int  # side of a tile at `target_mpp`
    overlap_px: int  # of neighbouring tiles at `target_mpp`
    encoder: str
    config_hash: str  # of every setting that shapes the features
    bad_tiles: int  # that could not be read and are not in the file
    bad_reason: str = ""  # why the first of them could not be read


def write_features(
    path: str | os.PathLike,
    x: Float[np.ndarray, "n d"],
    yx: Int[np.ndarray, "n 2"],
    metadata: FeatureMetadata,
) -> None:
    """Writes one slide's features, and the level-0 corners of its tiles, whole.

    A slide without tissue has n = 0 and a file all the same. FeatureError: a feature is
    not a finite float16. OSError: the disk is full or not to be written to; it names
    the file.
    """
    path = pathlib.Path(path)
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(x, np.float16)
    _check_finite(_not_finite(half), len(half), path)

    def write_datasets(f):
        features = f.create_dataset("features", data=half)
        coords = f.create_dataset("coords", data=yx[:, ::-1].astype(np.int32))
        # TRIDENT writes a folder here; ours has no machine's path in it.
        named = {"name": metadata.slide_id, "savetodir": path.parent.name}
        features.attrs.update(named | {"encoder": metadata.encoder})
        coords.attrs.update(named | _coords_attrs(metadata))

    hdf5.write_whole(path, write_datasets)


@reads_file
def read_features(path: str | os.PathLike, verify: bool = True) -> Features:
    """Reads a feature file of ours, CLAM's or TRIDENT's.

    Datasets may be (n, d) or (1, n, d), of any float and integer type, in any layout.
    `verify` compares the features to their checksum, if they have one, which takes half
    as long again: batches leave it out, as a run has checked before.

    FeatureError: the file is not what its checksum says, or beyond float16.
    """
    with opened(path) as f:
        features, coords = _datasets(f, path)
        with np.errstate(over="ignore"):
            x = read_all(features, verify).astype(np.float16, copy=False)
        yx, attrs = _coords(features, coords)
    _check_finite(_not_finite(x), len(x), path)
    return Features(x, yx, attrs)


@reads_file
def read_coords(path: str | os.PathLike) -> Coords:
    """All of a feature file but its features."""
    with opened(path) as f:
        return _coords(*_datasets(f, path))


@reads_file
def feature_shape(path: str | os.PathLike) -> tuple[int, int]:
    """(n, d) of a feature file, from its header alone."""
    with opened(path) as f:
        features, _ = _datasets(f, path)
        n, d = features.shape[-2:]
    return int(n), int(d)


@reads_file
def check_feature_file(path: str | os.PathLike) -> tuple[int, int]:
    """(n, d) of a feature file that `read_features` can read; a piece at a time.

    FeatureError: as `read_features`, or parts of it were never written.
    """
    bad, crc = 0, 0
    with opened(path) as f:
        features, coords = _datasets(f, path)
        n, d = features.shape[-2:]
        hdf5.check_stored(features)
        hdf5.check_stored(coords)
        _coords(features, coords)
        for block in hdf5.blocks(features):
            crc = zlib.crc32(np.ascontiguousarray(block), crc)
            with np.errstate(over="ignore"):
                bad += _not_finite(block.astype(np.float16, copy=False))
        hdf5.check_sum(features, crc)
    _check_finite(bad, n, path)
    return int(n), int(d)


def lost_tiles(path: str | os.PathLike) -> tuple[int, str]:
    """How many tiles could not be read when a feature file was made, and why."""
    attrs = read_coords(path).attrs
    return int(attrs.get("bad_coords", 0)), str(attrs.get("bad_reason", ""))


def is_whole(path: str | os.PathLike, config_hash: str) -> bool:
    """Whether a file is there, undamaged by its checksum, made with these settings."""
    try:
        if read_coords(path).attrs.get("config_hash") != config_hash:
            return False
        check_feature_file(path)
    except FeatureError:
        return False
    return True


def _coords_attrs(made: FeatureMetadata) -> dict[str, Any]:
    h, w = made.shape
    return {
        "patch_size": made.size_px,
        "patch_size_level0": round(made.size_px * made.target_mpp / made.mpp),
        # Nominal: "40x" is 0.25 um/px. Nothing here reads it.
        "level0_magnification": round(10 / made.mpp, 3),
        "target_magnification": round(10 / made.target_mpp, 3),
        "overlap": made.overlap_px,
        "level0_width": w,
        "level0_height": h,
        "mpp": made.mpp,
        "target_mpp": made.target_mpp,
        "wsi_jax_version": wsi_jax.__version__,
        "config_hash": made.config_hash,
        "bad_coords": made.bad_tiles,
        "bad_reason": made.bad_reason,
    }


def _datasets(f, path):
    names = [name for name in FEATURE_NAMES if hdf5.has(f, name)]
    if not names or not hdf5.has(f, "coords"):
        raise FeatureError(
            f"{path}: datasets {sorted(f)[:10]}; a feature file has 'features' and "
            "'coords'"
        )
    features, coords = dataset(f, names[0]), dataset(f, "coords")
    if features.shape[-2] != coords.shape[-2] or coords.shape[-1] != 2:
        raise FeatureError(
            f"{path}: features {features.shape} and coords {coords.shape} disagree; "
            "delete it and extract again"
        )
    return features, coords


def _coords(features, coords):
    xy = read_all(coords)
    limits = np.iinfo(np.int32)
    bad = ~((xy >= limits.min) & (xy <= limits.max)).all(-1)  # nan is neither
    if bad.any():
        raise FeatureError(
            f"{coords.file.filename}: {bad.sum()} of {len(xy)} tiles have coords that "
            "are no pixel of a slide; delete it and extract again"
        )
    attrs = dict(features.attrs) | dict(coords.attrs)
    attrs.pop(hdf5.CHECKSUM, None)
    return Coords(xy[:, ::-1].astype(np.int32), attrs)


def _not_finite(x):
    """How many rows of float16s have one that is not finite."""
    # Only inf and nan have all exponent bits set. Comparing bits takes a seventh of the
    # time of isfinite, which is longer than reading the file.
    if (x.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00:
        return 0
    return int(np.sum(~np.isfinite(x).all(-1)))


def _check_finite(bad, n, path):
    if bad:
        raise FeatureError(
            f"{path}: {bad} of {n} tiles have features that are no finite float16; "
            "check the encoder's weights, or scale its output"
        )
