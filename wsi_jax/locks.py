"""Locks a folder for one process at a time.

On a disk the operating system locks it. In an object store nothing can be locked: its
holder writes a lease, and writes it anew every `BEAT_S` seconds. Others refuse while it
is fresh; one that is `STALE_S` seconds old was left by a killed process, and is taken
over. A holder that finds its lease taken over (it was suspended, or cut off) ends at
once and writes no more. Clocks of machines must agree to some seconds.
"""

import contextlib
import datetime
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator

from wsi_jax.files import (
    AnyPath,
    any_path,
    is_remote,
    is_running,
    machine_id,
    sweep,
    write_text,
)

try:
    import fcntl
except ImportError:  # on Windows folders are not locked
    fcntl = None

LOCK, LEASE = ".lock", ".lease"
BEAT_S, STALE_S = 15, 60
SETTLE_S = 2  # longer than another takes from reading a lease to writing its own


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
    if is_remote(folder):
        with _leased(any_path(folder) / LEASE, mend):
            yield
        return
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
            raise _refusal(path, _described(holder), mend) from None
        if _is_there(path, descriptor):
            break
        os.close(descriptor)  # its holder has removed it meanwhile
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(_holder()).encode(), 0)
    return descriptor


def _holder() -> dict[str, int | str]:
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _refusal(path: AnyPath, who: str, mend: str) -> LockedError:
    return LockedError(
        f"{path.parent} is in use by {who}: wait until it ends, stop it, or {mend}"
    )


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


def _described(holder: bytes | str) -> str:
    try:
        who = json.loads(holder)
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


@contextlib.contextmanager
def _leased(path: AnyPath, mend: str) -> Iterator[None]:
    """Holds the lease at `path` within a block; raises LockedError."""
    lease = _holder() | {"id": secrets.token_hex(8), "machine": machine_id()}
    _check_free(path, lease, mend)
    _renew(path, lease)
    time.sleep(SETTLE_S)
    _check_free(path, lease, mend)  # of two that come at once, the last to write stays
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, lease, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        with contextlib.suppress(Exception):  # of the network: then it goes stale
            if not _other(path, lease):
                path.unlink(missing_ok=True)


def _beat(path: AnyPath, lease: dict, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        with contextlib.suppress(Exception):  # of the network, which may come back
            if other := _other(path, lease):
                print(f"{path.parent} was taken over by {other}", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)
            _renew(path, lease)


def _renew(path: AnyPath, lease: dict) -> None:
    # Of one length: clients remember for some seconds how long a file is.
    write_text(path, json.dumps(lease | {"time": time.time()}).ljust(512))


def _check_free(path: AnyPath, lease: dict, mend: str) -> None:
    if other := _other(path, lease):
        raise _refusal(path, other, f"{mend}; if it was killed, wait {STALE_S} s")


def _other(path: AnyPath, lease: dict) -> str:
    """Who else has a fresh lease; "" for nobody."""
    try:
        text = path.read_text()
        other = json.loads(text)
        dead = other["machine"] == lease["machine"] and not is_running(other["pid"])
        ours, age_s = other["id"] == lease["id"], time.time() - other["time"]
    except FileNotFoundError:
        return ""
    except (ValueError, KeyError, TypeError):
        return f"a process whose {path.name} cannot be read"
    return "" if ours or dead or age_s > STALE_S else _described(text)
