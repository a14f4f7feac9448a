"""Checks of free disk space, and errors of a full disk."""

import errno
import os
import pathlib
import shutil

from wsi_jax.data.features import FeatureError
from wsi_jax.slides.file_faults import has_errno

GIB = 1 << 30
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_space(folder: str | os.PathLike, tiles: int, d: int) -> None:
    """Checks that the disk of a folder, there or not, has room for features [tiles d].

    FeatureError: with what is needed and what is free.
    """
    there = pathlib.Path(folder).absolute()
    while not there.exists():
        there = there.parent
    need, free = tiles * (2 * d + 8), shutil.disk_usage(there).free
    if need > free:
        raise FeatureError(
            f"{folder}: the features of {tiles} tiles take {need / GIB:.3g} GiB and "
            f"its disk has {free / GIB:.3g} free; free some, or name another folder "
            "with --config.features"
        )


def is_full(error: BaseException) -> bool:
    """Whether an error, or its cause, says that a disk is full."""
    return has_errno(error, _FULL)
