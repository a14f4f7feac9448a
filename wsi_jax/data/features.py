"""A slide's features on disk: HDF5 that CLAM and TRIDENT read, and theirs read here.

    features  (n, d) float16, contiguous    attributes: encoder, name, savetodir
    coords    (n, 2) int32, level-0 (x, y)  attributes: TRIDENT's, and our own below

float16 and contiguous because a whole slide is read at once: much faster than TRIDENT's
one-row float32 chunks, and half the bytes.
"""

import dataclasses
import enum
import hashlib
import importlib.metadata
import json
import os
import pathlib
import zlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float16, Int, Int32

from wsi_jax.data.hdf5 import (
    CHECKSUM,
    FeatureError,
    blocks,
    check_stored,
    check_sum,
    dataset,
    has,
    opened,
    read_all,
    write_whole,
)

FEATURE_NAMES = ("features", "feats")  # CLAM and TRIDENT; STAMP and mopadi


class Features(NamedTuple):
    """The features of one slide's tiles.

    Attributes:
        x: one vector per tile.
        yx: top-left corner of each tile, in level-0 pixels.
        attrs: of both datasets.
    """

    x: Float16[np.ndarray, "n d"]
    yx: Int32[np.ndarray, "n 2"]
    attrs: dict[str, Any]


class Coords(NamedTuple):
    """Where the tiles of one slide lie.

    Attributes:
        yx: top-left corner of each tile, in level-0 pixels.
        attrs: of both datasets.
    """

    yx: Int32[np.ndarray, "n 2"]
    attrs: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """Where features came from: what their file's attributes tell.

    Attributes:
        slide_id: of the slide.
        shape: (h, w) of level 0, in pixels.
        mpp: of level 0, micrometres per pixel.
        target_mpp: at which the tiles were read.
        size_px: side of a tile at `target_mpp`.
        overlap_px: of neighbouring tiles at `target_mpp`.
        encoder: its name.
        config_hash: of every setting that shapes the features (see `config_hash`).
        bad_tiles: tiles that could not be read and are not in the file.
        bad_reason: why the first of them could not; "" where there are none.
    """

    slide_id: str
    shape: tuple[int, int]
    mpp: float
    target_mpp: float
    size_px: int
    overlap_px: int
    encoder: str
    config_hash: str
    bad_tiles: int
    bad_reason: str = ""


def config_hash(*settings: Any) -> str:
    """16 hex digits that change when any setting does.

    Args:
        settings: dataclasses, enums, or anything JSON can write.
    """
    plain = [
        dataclasses.asdict(s) if dataclasses.is_dataclass(s) else s for s in settings
    ]
    text = json.dumps(plain, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_features(
    path: str | os.PathLike,
    x: Float[np.ndarray, "n d"],
    yx: Int[np.ndarray, "n 2"],
    origin: Origin,
) -> None:
    """Writes one slide's features whole, under a temporary name first.

    A slide without tissue has n = 0 and a file all the same.

    Args:
        path: of the file; its folder is made.
        x: features, in the order of `yx`.
        yx: top-left corners in level-0 pixels.
        origin: of the features.

    Raises:
        FeatureError: a feature is not a finite float16.
        OSError: the disk is full or not to be written to; it names the file.
    """
    path = pathlib.Path(path)
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(x, np.float16)
    _check_finite(_not_finite(half), len(half), path)

    def fill(f):
        features = f.create_dataset("features", data=half)
        coords = f.create_dataset("coords", data=yx[:, ::-1].astype(np.int32))
        # TRIDENT writes a folder here; ours has no machine's path in it.
        named = {"name": origin.slide_id, "savetodir": path.parent.name}
        features.attrs.update(named | {"encoder": origin.encoder})
        coords.attrs.update(named | _coords_attrs(origin))

    write_whole(path, fill)


def read_features(path: str | os.PathLike, verify: bool = True) -> Features:
    """Reads a feature file of ours, CLAM's or TRIDENT's.

    Datasets may be (n, d) or (1, n, d), of any float and integer type, in any layout.

    Args:
        path: of the file.
        verify: compare the features to their checksum, if they have one; it takes half
            as long again, so batches leave it out, which a run has checked before.

    Raises:
        FeatureError: the file is truncated, not such a file, not what its checksum
            says, or beyond float16.
    """
    with opened(path) as f:
        features, coords = _datasets(f, path)
        with np.errstate(over="ignore"):
            x = read_all(features, verify).astype(np.float16, copy=False)
        yx, attrs = _coords(features, coords)
    _check_finite(_not_finite(x), len(x), path)
    return Features(x, yx, attrs)


def read_coords(path: str | os.PathLike) -> Coords:
    """All of a feature file but its features.

    Raises:
        FeatureError: the file is truncated or not such a file.
    """
    with opened(path) as f:
        return _coords(*_datasets(f, path))


def feature_shape(path: str | os.PathLike) -> tuple[int, int]:
    """(n, d) of a feature file, from its header alone.

    Raises:
        FeatureError: the file is truncated or not such a file.
    """
    with opened(path) as f:
        features, _ = _datasets(f, path)
        n, d = features.shape[-2:]
    return int(n), int(d)


def check_features(path: str | os.PathLike) -> tuple[int, int]:
    """(n, d) of a feature file that `read_features` can read; a piece at a time.

    Raises:
        FeatureError: as `read_features`, or parts of it were never written.
    """
    bad, crc = 0, 0
    with opened(path) as f:
        features, coords = _datasets(f, path)
        n, d = features.shape[-2:]
        check_stored(features)
        check_stored(coords)
        _coords(features, coords)
        for block in blocks(features):
            crc = zlib.crc32(np.ascontiguousarray(block), crc)
            with np.errstate(over="ignore"):
                bad += _not_finite(block.astype(np.float16, copy=False))
        check_sum(features, crc)
    _check_finite(bad, n, path)
    return int(n), int(d)


def lost_tiles(path: str | os.PathLike) -> tuple[int, str]:
    """How many tiles could not be read when a feature file of ours was made, and why.

    Raises:
        FeatureError: the file is truncated or not such a file.
    """
    with opened(path) as f:
        _, coords = _datasets(f, path)
        attrs = dict(coords.attrs)
    return int(attrs.get("bad_coords", 0)), str(attrs.get("bad_reason", ""))


def is_whole(path: str | os.PathLike, expect: str) -> bool:
    """Whether a file is there, complete, undamaged, and made with these settings.

    All of it is read, for its checksum.

    Args:
        path: of the feature file.
        expect: the `config_hash` it must carry.
    """
    try:
        with opened(path) as f:
            _, coords = _datasets(f, path)
            if coords.attrs.get("config_hash") != expect:
                return False
        check_features(path)
    except FeatureError:
        return False
    return True


def _coords_attrs(origin):
    h, w = origin.shape
    return {
        "patch_size": origin.size_px,
        "patch_size_level0": round(origin.size_px * origin.target_mpp / origin.mpp),
        # Nominal: "40x" is 0.25 um/px. Nothing here reads it.
        "level0_magnification": round(10 / origin.mpp, 3),
        "target_magnification": round(10 / origin.target_mpp, 3),
        "overlap": origin.overlap_px,
        "level0_width": w,
        "level0_height": h,
        "mpp": origin.mpp,
        "target_mpp": origin.target_mpp,
        "wsi_jax_version": _version(),
        "config_hash": origin.config_hash,
        "bad_coords": origin.bad_tiles,
        "bad_reason": origin.bad_reason,
    }


def _datasets(f, path):
    there = [name for name in FEATURE_NAMES if has(f, name)]
    if not there or not has(f, "coords"):
        raise FeatureError(
            f"{path}: datasets {sorted(f)[:10]}; a feature file has 'features' and "
            "'coords'"
        )
    features, coords = dataset(f, there[0]), dataset(f, "coords")
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
    attrs.pop(CHECKSUM, None)
    return Coords(xy[:, ::-1].astype(np.int32), attrs)


def _not_finite(x):
    """How many rows of float16s have one that is not finite."""
    # Of all float16s only inf and nan have all exponent bits set. Asked of the bits, it
    # takes a seventh of isfinite's time, which is longer than reading the file.
    if (x.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00:
        return 0
    return int(np.sum(~np.isfinite(x).all(-1)))


def _check_finite(bad, n, path):
    if bad:
        raise FeatureError(
            f"{path}: {bad} of {n} tiles have features that are no finite float16; "
            "check the encoder's weights, or scale its output"
        )


def _version():
    try:
        return importlib.metadata.version("wsi_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a checkout


def _plain(value):
    if isinstance(value, enum.Enum):
        return value.name
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a setting of type {type(value).__name__} cannot be hashed")
