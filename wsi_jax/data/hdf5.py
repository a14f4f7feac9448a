"""Reads and writes HDF5 files whole, with checks and errors that name the mend.

Files come from anywhere: nothing is read that lies outside of a file, was never stored
in it, or would unpack to more than a bag of tiles can be. What is written here carries
a checksum, which every run verifies once, before it trains.
"""

import contextlib
import io
import math
import os
import pathlib
import stat
import zlib
from collections.abc import Callable, Iterator

import h5py
import numpy as np
from jaxtyping import Shaped

from wsi_jax.files import replacing
from wsi_jax.slides.file_faults import is_transient, mend

# What one slide can be: the tiles of a dataset, the numbers of a tile, and all of them.
MAX_ROWS, MAX_COLUMNS, MAX_GIB = 10_000_000, 65_536, 32
# Numbers are not packed this much by any filter, unless there is nothing in them.
MAX_PACKING, UNPACKED_BYTES = 100, 1 << 26
BLOCK_BYTES = 1 << 24
CHECKSUM = "crc32"  # attribute of a dataset: of its bytes, row by row
GIB = 1 << 30


class FeatureError(ValueError):
    """A feature file that cannot be used; the message names it and the mend."""


def write_whole(
    path: str | os.PathLike, write_datasets: Callable[[h5py.File], None]
) -> None:
    """Writes an HDF5 file, with checksums, under a temporary name first.

    Its folder is made. OSError: the disk is full or not to be written to; it names the
    file.
    """
    path = pathlib.Path(path)
    whole = io.BytesIO()  # a disk that fills up meanwhile is no HDF5 error then
    with h5py.File(whole, "w") as f:
        write_datasets(f)
        for data in f.values():
            data.attrs[CHECKSUM] = f"{zlib.crc32(data[()]):08x}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(whole.getbuffer())


class _File(io.FileIO):
    """A file that is read without Python's lock, which HDF5 would hold meanwhile."""

    def __repr__(self):  # what h5py takes for its name
        return os.fspath(self.name)


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[h5py.File]:
    """Opens a file to read from it.

    FeatureError: there is none, or it is damaged, which may show as late as at a read
    within the block.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block for ever
            raise FeatureError(f"{path}: no regular file; extract the slide's features")
        with _File(path) as file:
            file.read(1)  # what hangs does so here, and not within the lock of h5py
            with h5py.File(file, "r") as f:
                yield f
    except FeatureError:
        raise
    except FileNotFoundError:
        raise FeatureError(
            f"{path}: no such feature file; extract the slide's features first"
        ) from None
    # What h5py raises depends on which byte is damaged.
    except (
        *(OSError, RuntimeError, KeyError, ValueError, TypeError),
        *(MemoryError, OverflowError),
    ) as error:
        if is_transient(error):
            raise FeatureError(f"{path}: {error}. {mend(error, path)}") from None
        raise FeatureError(
            f"{path}: truncated or not HDF5 ({error}); delete it and extract again"
        ) from None


def has(f: h5py.File, name: str) -> bool:
    """Whether a file has a member of this name; links are not followed."""
    return f.id.links.exists(name.encode())


def dataset(f: h5py.File, name: str) -> h5py.Dataset:
    """A table of numbers [n d] (or [1 n d]) that is stored in this file; not yet read.

    FeatureError: it is not there, lies in another file, or declares what no slide can
    be.
    """
    if not has(f, name):
        raise FeatureError(f"{f.filename}: no {name}; delete it and extract again")
    # Asked of the link itself: what it leads to must not even be opened.
    if f.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise FeatureError(
            f"{f.filename}: {name} is a link; store the numbers under this name"
        )
    data = f[name]
    if not isinstance(data, h5py.Dataset):
        raise FeatureError(f"{f.filename}: {name} is no dataset; extract again")
    if data.is_virtual or data.external:
        raise FeatureError(
            f"{f.filename}: the numbers of {name} are stored in other files; store "
            "them in this one"
        )
    if data.dtype.kind not in "fiu" or data.shape is None:
        raise FeatureError(
            f"{f.filename}: {name} holds no numbers ({data.dtype}); delete it and "
            "extract again"
        )
    if data.ndim not in (2, 3) or (data.ndim == 3 and data.shape[0] != 1):
        raise FeatureError(f"{f.filename}: {name} is {data.shape}; it must be (n, d)")
    _check_size(data, f"{f.filename}: {name}")
    return data


def blocks(data: h5py.Dataset) -> Iterator[Shaped[np.ndarray, "m d"]]:
    """The rows of a dataset in order, some 16 MiB (or one chunk) at a time."""
    n, d = data.shape[-2:]
    height = max(1, BLOCK_BYTES // max(1, d * data.dtype.itemsize))
    if data.chunks:  # none is unpacked twice
        height = max(1, height // data.chunks[-2]) * data.chunks[-2]
    for start in range(0, n, height):
        yield data[..., start : start + height, :].reshape(-1, d)


def read_all(data: h5py.Dataset, verify: bool = True) -> Shaped[np.ndarray, "n d"]:
    """All of a dataset; `verify` compares it to its checksum, as `check_sum`."""
    values = data[()]
    if verify:
        check_sum(data, zlib.crc32(values))
    return values.reshape(-1, data.shape[-1])


def check_sum(data: h5py.Dataset, crc: int) -> None:
    """A FeatureError unless the CRC-32 of a dataset's bytes is its checksum, if any."""
    written = data.attrs.get(CHECKSUM)
    if written is not None and written != f"{crc:08x}":
        raise FeatureError(
            f"{data.file.filename}: {data.name[1:]} is damaged: its checksum is "
            f"{crc:08x} and was {written} when written; delete it and extract again"
        )


def check_stored(data: h5py.Dataset) -> None:
    """A FeatureError where parts were never written, which would read as zeros."""
    if not data.chunks:
        return
    sides = zip(data.shape, data.chunks, strict=True)
    chunks = math.prod(-(-n // side) for n, side in sides)
    stored = data.id.get_num_chunks()
    if stored < chunks:
        raise FeatureError(
            f"{data.file.filename}: {chunks - stored} of {chunks} chunks of "
            f"{data.name[1:]} were never written; delete it and extract again"
        )


def _check_size(data, what):
    """Compares what a dataset declares to what a slide can be, and to what is stored.

    A file of a few bytes can declare any number of them.
    """
    n, d = data.shape[-2:]
    chunk = math.prod(data.chunks or (0,))
    declared = max(math.prod(data.shape), chunk) * data.dtype.itemsize
    if n > MAX_ROWS or d > MAX_COLUMNS or declared > MAX_GIB * GIB:
        raise FeatureError(
            f"{what} declares {n:,} tiles of {d:,} numbers, {declared / GIB:,.3g} GiB; "
            f"a slide has at most {MAX_ROWS:,} of {MAX_COLUMNS:,}, and {MAX_GIB} GiB: "
            "delete it and extract again"
        )
    stored = data.id.get_storage_size()
    if (declared and not stored) or declared > max(
        UNPACKED_BYTES, MAX_PACKING * stored
    ):
        raise FeatureError(
            f"{what} declares {declared:,} bytes and stores {stored:,}; numbers are "
            f"not packed more than {MAX_PACKING} times: delete it and extract again"
        )
