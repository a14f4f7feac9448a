"""Writes files whole or not at all, by any number of processes; ids by content.

A file is written under a temporary name that no other process uses and then renamed.
What a killed process has left behind is removed by `sweep`. An object of a store
(gs://bucket/run/metrics.json) is made by one upload, whole or not at all: stores have
no renames, and no appends.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator

from etils import epath

AnyPath = pathlib.Path | epath.Path  # of a disk, or of an object store
FLUSH_S = 10  # between two uploads of a file that grows
_answered: set[tuple[str, ...]] = set()  # buckets
MIB = 1 << 20
DAY_S = 24 * 60 * 60
PID_NAMESPACE = "/proc/self/ns/pid"  # process ids mean the same only within one
BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part")


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is of an object store, as gs://bucket/run is."""
    return "://" in os.fspath(path)


def any_path(path: str | os.PathLike) -> AnyPath:
    """A path of a disk or of an object store; both have the methods of `pathlib`.

    Raises:
        ValueError: the store does not answer; it names the path, and what is needed.
    """
    if not is_remote(path):
        return pathlib.Path(path)
    bucket, path = os.fspath(path).split("/")[:3], epath.Path(os.fspath(path))
    if tuple(bucket) not in _answered:
        try:
            if bucket[0] == "gs:":
                import google.cloud.storage  # noqa: F401  Orbax asks it of the bucket
            path.exists()
        except Exception as error:  # each client has errors of its own
            raise ValueError(f"{path}: {_no_answer(error)}") from error
        _answered.add(tuple(bucket))
    return path


def _no_answer(error: Exception) -> str:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return (
        f"the object store does not do as asked ({reason}): a bucket gs://NAME needs "
        "pip install 'wsi_jax[gcs]', and credentials that may list, read and write "
        "(gcloud auth application-default login)"
    )


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary name beside `path`; what is written there replaces `path` at the end.

    Where the block raises, the temporary file is removed and `path` stays as it was.

    Args:
        path: the file to write, in a folder that exists; or an object.

    Raises:
        OSError: the disk is full or not to be written to; it names `path`.
    """
    path = any_path(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder, path.name)
            try:
                path.write_bytes(pathlib.Path(folder, path.name).read_bytes())
            except Exception as error:
                raise OSError(errno.EIO, _no_answer(error), str(path)) from error
        return
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


class Lines:
    """A text file that grows by lines; one that a killed writer cut short is ended.

    An object cannot be appended to: it is written anew by `flush`, and by `add` every
    `FLUSH_S`. A kill loses the lines since.
    """

    def __init__(self, path: str | os.PathLike):
        self._path, self._flushed = any_path(path), time.monotonic()
        self._text = None  # all of an object, once a line was added

    def add(self, line: str) -> None:
        """Adds a line, given without its end."""
        if is_remote(self._path):
            if self._text is None:
                self._text = self._path.read_text() if self._path.exists() else ""
            self._text += f"{line}\n"
            if time.monotonic() - self._flushed > FLUSH_S:
                self.flush()
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab+") as file:
            file.seek(max(0, file.tell() - 1))
            cut = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * cut + line.encode() + b"\n")

    def flush(self) -> None:
        """Writes what was added to an object."""
        if self._text is not None:
            write_text(self._path, self._text)
            self._flushed = time.monotonic()


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
