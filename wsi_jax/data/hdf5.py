"""HDF5 files that are whole or not there, and errors that name the mend."""

import contextlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator

import h5py

from wsi_jax.files import replacing


class FeatureError(ValueError):
    """A feature file that cannot be used; the message names it and the mend."""


def write_whole(path: str | os.PathLike, fill: Callable[[h5py.File], None]) -> None:
    """Writes a file under a temporary name first; its folder is made.

    Args:
        path: of the file.
        fill: puts into it what it holds.

    Raises:
        OSError: the disk is full or not to be written to; it names the file.
    """
    path = pathlib.Path(path)
    whole = io.BytesIO()  # a disk that fills up meanwhile is no HDF5 error then
    with h5py.File(whole, "w") as f:
        fill(f)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(whole.getbuffer())


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[h5py.File]:
    """Opens a file to read from it.

    Raises:
        FeatureError: there is none, or it is damaged, which may show as late as at a
            read within the block.
    """
    try:
        with h5py.File(path, "r") as f:
            yield f
    except FeatureError:
        raise
    except FileNotFoundError:
        raise FeatureError(
            f"{path}: no such feature file; extract the slide's features first"
        ) from None
    # What h5py raises depends on which byte is damaged.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise FeatureError(
            f"{path}: truncated or not HDF5 ({error}); delete it and extract again"
        ) from None
