"""Open files of the process: few, shared by all threads, closed when idle and old.

OpenSlide handles are thread-safe, so threads share one per slide; a least-recently-used
bound keeps a cohort of thousands from holding thousands of files and tile caches.
"""

import atexit
import collections
import contextlib
import os
import threading

from wsi_jax.slides.readers import Reader, SlideError, open_reader

# A handle in use is never closed, so more threads than this still work.
MAX_OPEN = 16


class Handle:
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
                self.reader = open_reader(self.key[0])


_open: collections.OrderedDict[tuple, Handle] = collections.OrderedDict()
_lock = threading.Lock()


def key_of(path: str) -> tuple[str, int, int]:
    """Names a file and its present contents: a file written anew is another key.

    Raises:
        SlideError: there is no such file.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise SlideError(
            f"{path} cannot be read ({error.strerror}); mend the manifest's path "
            "column (paths are relative to the manifest)"
        ) from error
    return os.path.abspath(path), stat.st_mtime_ns, stat.st_size


@contextlib.contextmanager
def lease(key: tuple):
    """Yields the shared open Handle of `key`, opening it if need be."""
    with _lock:
        handle = _open.setdefault(key, Handle(key))
        _open.move_to_end(key)
        handle.users += 1
    try:
        handle.open()
        yield handle
    except BaseException:
        if handle.reader is None:
            retire(handle)
        raise
    finally:
        with _lock:
            handle.users -= 1
            idle = [h for h in _open.values() if not h.users]
            closing = idle[: max(0, len(_open) - MAX_OPEN)]
            for old in closing:
                del _open[old.key]
            if handle.retired and not handle.users:
                closing.append(handle)
        _close(closing)


def retire(handle: Handle) -> None:
    """Takes a handle out of service: the next lease opens a fresh one.

    OpenSlide latches its first error: after one bad tile every read of that handle
    fails, so such a handle is thrown away. It closes when its last reader is done.
    """
    with _lock:
        if _open.get(handle.key) is handle:
            del _open[handle.key]
        closing = [] if handle.users or handle.retired else [handle]
        handle.retired = True
    _close(closing)


def close(key: tuple) -> None:
    """Closes the file of `key` if it is open, once nobody reads it."""
    with _lock:
        handle = _open.get(key)
    if handle is not None:
        retire(handle)


@atexit.register
def close_all() -> None:
    """Closes every file that nobody is reading."""
    for key in list(_open):
        close(key)


def _close(handles):
    for handle in handles:
        if handle.reader is not None:
            handle.reader.close()


def _forget_after_fork():
    """A child must not share file offsets and locks with its parent."""
    global _lock
    _lock = threading.Lock()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
