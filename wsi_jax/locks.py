"""Locks a folder for one process at a time."""

import contextlib
import datetime
import json
import os
import pathlib
import socket
from collections.abc import Iterator

from wsi_jax.files import sweep

try:
    import fcntl
except ImportError:  # on Windows folders are not locked
    fcntl = None

LOCK = ".lock"


class LockedError(ValueError):
    """A folder is in use by another process, which the message names."""


@contextlib.contextmanager
def locked(folder: str | os.PathLike, mend: str) -> Iterator[None]:
    """Keeps a folder, which is made if absent, for this process within a block.

    The lock is the operating system's (flock) and ends with the process, however that
    ends. On NFS it holds between machines, too; on a file system without locks nothing
    is locked.

    Args:
        folder: the folder; temporary files of killed processes in it are removed.
        mend: what to do other than wait, for the message.

    Raises:
        LockedError: another process has it.
    """
    path = pathlib.Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = _acquire(path, mend)
    try:
        sweep(folder)
        yield
    finally:
        path.unlink(missing_ok=True)  # first: who opens it now finds it gone, and again
        os.close(descriptor)


def _acquire(path: pathlib.Path, mend: str) -> int:
    """Descriptor of the lock's file, locked, with this process's name in it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise LockedError(
                f"{path.parent} is in use by {_described(holder)}: wait until it ends, "
                f"stop it, or {mend}"
            ) from None
        if _is_there(path, descriptor):
            break
        os.close(descriptor)  # its holder has removed it meanwhile
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    return descriptor


def _lock(descriptor: int) -> None:
    """Raises BlockingIOError where another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system without locks


def _is_there(path: pathlib.Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _described(holder: bytes) -> str:
    try:
        who = json.loads(holder)
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
