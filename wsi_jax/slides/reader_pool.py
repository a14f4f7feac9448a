"""The open files of the process: few, shared by all threads, closed when idle and old.

OpenSlide handles are thread-safe, so threads share one per slide; a least-recently-used
bound keeps a cohort of thousands from holding thousands of files and tile caches.
"""

import atexit
import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from wsi_jax.slides.file_faults import read_file
from wsi_jax.slides.reader_protocol import Reader, SlideError, is_url

# A reader in use is never closed, so more threads than this still work.
MAX_OPEN = 16


class FileKey(NamedTuple):
    """A file (absolute, or a URL) and its present contents, as its time of change and
    size tell: a file written anew has another key."""

    path: str
    open_reader: Callable[[str], Reader]
    mtime_ns: int = 0
    size: int = 0


class _Entry:
    """A file that is, or is about to be, open."""

    def __init__(self, key):
        self.key = key
        self.users = 0
        self.retired = False
        self.reader: Reader | None = None
        self.opening = threading.Lock()

    def open(self):
        with self.opening:  # one slow open does not stall the other slides
            if self.reader is None:
                self.reader = self.key.open_reader(self.key.path)


_entries: collections.OrderedDict[FileKey, _Entry] = collections.OrderedDict()
_lock = threading.Lock()


def key_of(path: str, open_reader: Callable[[str], Reader]) -> FileKey:
    """The key of a file, or of a URL.

    SlideError: there is no such file.
    """
    if is_url(path):
        return FileKey(path, open_reader)
    try:
        stat = os.stat(path)
    except FileNotFoundError as error:
        raise SlideError(
            f"no file {path}; mend its path (paths in a manifest are relative to it)"
        ) from error
    except OSError as error:
        raise SlideError(
            f"{path} cannot be read ({error.strerror}); mend the manifest's path "
            "column (paths are relative to the manifest)"
        ) from error
    return FileKey(os.path.abspath(path), open_reader, stat.st_mtime_ns, stat.st_size)


@contextlib.contextmanager
def lease(key: FileKey) -> Iterator[Reader]:
    """Yields the shared reader of a file, opened if need be.

    After any error it is used no more: OpenSlide latches its first error, and refuses
    every read after one bad tile. It is closed when its last user is done.
    """
    with _lock:
        entry = _entries.setdefault(key, _Entry(key))
        _entries.move_to_end(key)
        entry.users += 1
    try:
        entry.open()
        yield entry.reader
    except BaseException:
        _retire(entry)
        raise
    finally:
        with _lock:
            entry.users -= 1
            idle = [one for one in _entries.values() if not one.users]
            closing = idle[: max(0, len(_entries) - MAX_OPEN)]
            for old in closing:
                del _entries[old.key]
            if entry.retired and not entry.users:
                closing.append(entry)
        _close(closing)


def read_region(
    key: FileKey,
    level: int,
    y: int,
    x: int,
    h: int,
    w: int,
    out: UInt8[np.ndarray, "h w 3"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Reads by the shared reader of a file; if it fails, once more by a new one, which
    no other thread's bad tile can have spoilt."""
    return read_file(key.path, lambda: _read_region(key, (level, y, x, h, w), out))


def read_regions(
    key: FileKey,
    level: int,
    corners: Sequence[Sequence[int]],
    outs: Sequence[UInt8[np.ndarray, "h w 3"]],
) -> None:
    """Reads rectangles at once by the shared reader of a file."""

    def read():
        with lease(key) as reader:
            reader.read_regions(level, corners, outs)

    read_file(key.path, read)


def _read_region(key, region, out):
    try:
        with lease(key) as reader:
            return reader.read_region(*region, out)
    except Exception:  # decoders raise whatever they like
        reader = key.open_reader(key.path)
    try:
        return reader.read_region(*region)
    finally:
        reader.close()


def _retire(entry):
    """Takes a reader out of service: the next lease opens another."""
    with _lock:
        if _entries.get(entry.key) is entry:
            del _entries[entry.key]
        closing = [] if entry.users or entry.retired else [entry]
        entry.retired = True
    _close(closing)


def close(key: FileKey) -> None:
    """Closes the file of `key` if it is open, once nobody reads it."""
    with _lock:
        entry = _entries.get(key)
    if entry is not None:
        _retire(entry)


@atexit.register
def close_all() -> None:
    """Closes every file that nobody is reading."""
    for key in list(_entries):
        close(key)


def _close(entries):
    for entry in entries:
        if entry.reader is not None:
            with contextlib.suppress(OSError):  # of a disk that is gone
                entry.reader.close()


def _clear_after_fork():
    """A child must not share file offsets and locks with its parent."""
    global _lock
    _lock = threading.Lock()
    _entries.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_clear_after_fork)
