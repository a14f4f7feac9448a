"""Faults of disks and networks: a read that fails is repeated, one that hangs given up.

Slides and feature files are read by `read_file`. No thread can be ended from outside:
each read runs on a thread that may be left behind, and whoever waits for it waits for a
while only. The slide is then refused by name, and the others go on.
"""

import collections
import errno
import functools
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from wsi_jax.slides.slide_id import slide_id_of

# Seconds before each further try, 7.75 in all, and up to a fifth more: many threads and
# machines are not to come back at once.
WAITS_S = (0.25, 0.5, 1.0, 2.0, 4.0)
GIVE_UP = 10  # a read is given up after this many times `hang_s`
_JITTER = random.Random()  # of its own: the seeds of results stay as they are
# Faults that may pass. A file that is not there is none of them: a file system that is
# gone says one of these, and a cohort of mistyped paths would be waited for. The same
# command, given again, reads such a file if it is back.
_TRANSIENT = {
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EINTR", "EAGAIN", "EBUSY", "EREMOTEIO"),
        *("ENOTCONN", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EPIPE"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
    )
    if hasattr(errno, name)
}

_settings = {"hang_s": 60.0}
_failed: set[str] = set()  # files whose last read failed to the end: not waited for
_named: dict[str, object] = {}  # files that hung, and a mark of the first read
_hung = collections.Counter()  # threads left behind that still read a file
_lock = threading.Lock()
_idle: list["_Thread"] = []


class HungError(OSError):
    """A read that does not come back."""


class _Thread(threading.Thread):
    """Does one read after another, until one hangs and it is left behind."""

    def __init__(self):
        super().__init__(daemon=True, name="file reader")
        self.jobs, self.results = queue.SimpleQueue(), queue.SimpleQueue()
        self.left = False
        self.start()

    def run(self):
        while not self.left and (job := self.jobs.get()):
            path, read = job
            try:
                result = _repeated(path, read), None
            except BaseException as error:  # raised where it is waited for
                result = None, error
            self.results.put(result)
            del job, read, result  # and what they hold
        with _lock:
            _hung[path] -= 1


def set_hang_s(seconds: float) -> None:
    """Sets after how long a read of this process is named as hanging; it is given up
    after GIVE_UP times as long."""
    _settings["hang_s"] = seconds


def read_file(path: str | os.PathLike, read: Callable[[], Any]) -> Any:
    """What `read` returns, which reads a file; repeated while its disk fails.

    Raises:
        HungError: a read of this file does not come back.
        Exception: what `read` raises; a fault that may pass only after WAITS_S.
    """
    path, hang_s = os.fspath(path), _settings["hang_s"]
    hung = f"a read has not come back for {GIVE_UP * hang_s:g} s"
    if _hung[path]:
        raise HungError(errno.ETIMEDOUT, hung, path)
    try:
        thread = _idle.pop()
    except IndexError:
        thread = _Thread()
    thread.jobs.put((path, read))
    try:
        result, error = _result(thread, path, hang_s)
    except queue.Empty:
        with _lock:
            _hung[path] += 1
        thread.left = True
        thread.jobs.put(None)  # it may have come back by now, and wait for another
        raise HungError(errno.ETIMEDOUT, hung, path) from None
    _idle.append(thread)
    if error is not None:
        raise error
    return result


def reads_file(read: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose first argument is a file's path, made to read by `read_file`."""

    @functools.wraps(read)
    def reading(path, *args, **kwargs):
        return read_file(path, lambda: read(path, *args, **kwargs))

    return reading


def is_hung() -> bool:
    """Whether a read was given up that may still write to its memory."""
    with _lock:
        return any(_hung.values())


def is_transient(error: BaseException) -> bool:
    """Whether an error, or its cause, is a fault of a disk or network that may pass."""
    return has_errno(error, _TRANSIENT)


def has_errno(error: BaseException, numbers: Collection[int]) -> bool:
    """Whether an error, or its cause, has one of these numbers, or the text of one:
    libraries raise errors of their own with that."""
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    if any(os.strerror(number) in str(error) for number in numbers):
        return True
    earlier = error.__cause__ or error.__context__
    return earlier is not None and has_errno(earlier, numbers)


def mend(error: BaseException, path: str | os.PathLike) -> str:
    """What mends an error of reading a file."""
    if is_transient(error):
        return (
            f"See that the disk or network of {path} answers, and give the same "
            "command again"
        )
    return f"Copy {path} again, or leave it out"


def _repeated(path, read):
    for wait in (*WAITS_S, None):
        try:
            result = read()
        except Exception as error:  # decoders raise whatever they like
            if not is_transient(error) or path in _failed:
                raise
            if wait is None:
                _failed.add(path)
                raise
            time.sleep(wait * (1 + _JITTER.random() / 5))
        else:
            _failed.discard(path)
            return result


def _result(thread, path, hang_s):
    """(what was read, error) of a thread; names a file that hangs, once."""
    try:
        return thread.results.get(timeout=hang_s)
    except queue.Empty:
        mark = object()
        if _named.setdefault(path, mark) is mark:
            print(
                f"{slide_id_of(path)}: a read of {path} has not come back for "
                f"{hang_s:g} s (--config.reading.hang_s); see that its disk or network "
                f"answers. It is given up after {GIVE_UP * hang_s:g} s",
                file=sys.stderr,
            )
    return thread.results.get(timeout=(GIVE_UP - 1) * hang_s)


if hasattr(os, "register_at_fork"):
    # A child has none of its parent's threads.
    os.register_at_fork(after_in_child=_idle.clear)
