"""Writes files whole or not at all, by any number of processes; ids by content.

A file is written under a temporary name that no other process uses and then renamed.
What a killed process has left behind is removed by `sweep`.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import secrets
import socket
import time
from collections.abc import Iterator

MIB = 1 << 20
DAY_S = 24 * 60 * 60
PID_NAMESPACE = "/proc/self/ns/pid"  # process ids mean the same only within one
BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary name beside `path`; what is written there replaces `path` at the end.

    Where the block raises, the temporary file is removed and `path` stays as it was.

    Args:
        path: the file to write, in a folder that exists.

    Raises:
        OSError: the disk is full or not to be written to; it names `path`.
    """
    path = pathlib.Path(path)
    writer = f"{machine_id()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{writer}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        ours = error.filename is None or str(error.filename) == str(temporary)
        if error.errno and ours:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file whole, in UTF-8. Raises what `replacing` raises."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sweep(folder: str | os.PathLike) -> None:
    """Removes temporary files below a folder whose writers are gone.

    Whether a process of another machine is still running cannot be asked: its files are
    removed when nothing has been written to them for a day.
    """
    for path in pathlib.Path(folder).rglob(".*.part"):
        name = _TEMPORARY.fullmatch(path.name)
        if not name:
            continue
        with contextlib.suppress(FileNotFoundError):  # its writer has just renamed it
            old = time.time() - path.stat().st_mtime > DAY_S
            here = name[1] == machine_id()
            if old or (here and not is_running(int(name[2]))):
                path.unlink()


def machine_id() -> str:
    """8 hex digits that name this machine or container."""
    space = ""
    with contextlib.suppress(OSError):  # not on macOS and Windows
        # Two nodes may have a pod of one name, in spaces of one number.
        space = os.readlink(PID_NAMESPACE) + BOOT.read_text()
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def is_running(pid: int) -> bool:
    """Whether a process of this machine runs; True where that cannot be asked."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def content_id(path: str | os.PathLike) -> str:
    """SHA-256 of a file's size and its first and last MiB: slides are too large to be
    hashed whole."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(MIB))
        file.seek(max(0, size - MIB))
        digest.update(file.read(MIB))
    return digest.hexdigest()
