"""A disk with real faults: a FUSE file system, served by a process of its own.

    python tests/faulty_disk.py FOLDER MOUNT    serves the files of a folder, to read

What the kernel gives a reader of `MOUNT/name` is what `FOLDER/name.fault` says: "EIO 3"
fails the next 3 reads, "EIO" all, "slow 0.2" waits first, "hang" does not answer until
the fault is mended; `FOLDER/.fault`, "EIO 0.01", fails so many of all. Files are read
past the page cache. Needs root, Linux and /dev/fuse.
"""

import ctypes
import errno
import os
import pathlib
import random
import stat
import struct
import subprocess
import sys
import threading
import time

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 14, 15, 17, 18
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT = 25, 26, 27, 28, 29, 36
BATCH_FORGET = 42
DIRECT_IO = 1
HEADER = struct.Struct("<IIQQIIII")  # len, opcode, unique, node, uid, gid, pid, more
libc = ctypes.CDLL(None, use_errno=True)


class FaultyDisk:
    """Mounted until the end of its context; `folder` holds the files themselves.

    OSError: nothing can be mounted here.
    """

    def __init__(self, folder, mount):
        self.folder, self.mount = pathlib.Path(folder), pathlib.Path(mount)
        for path in (self.folder, self.mount):
            path.mkdir(exist_ok=True)
        command = [sys.executable, __file__, str(self.folder), str(self.mount)]
        self.server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not os.path.ismount(self.mount):
            if self.server.poll() is not None:
                raise OSError("no FUSE here")
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.kill()  # whatever hangs fails now
        self.server.wait()
        subprocess.run(["umount", "--lazy", str(self.mount)], check=True)

    def fault(self, name, text=""):
        """Sets the fault of a file, or of the disk (""); no text mends it."""
        path = self.folder / f"{name}.fault"
        path.write_text(text) if text else path.unlink(missing_ok=True)


def _attributes(node, path):
    at = os.stat(path)
    times = 3 * (int(at.st_mtime),)
    mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o444
    numbers = 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
    return struct.pack("<6Q10I", node, at.st_size, at.st_blocks, *times, *numbers)


class Server:
    """Answers the kernel's requests, each on a thread: if one hangs, others go on."""

    def __init__(self, folder, mount):
        self.folder, self.names, self.lock = folder, [], threading.Lock()
        self.file = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.file},rootmode=40000,user_id=0,group_id=0,allow_other"
        arguments = b"faulty", mount.encode(), b"fuse", 0, options.encode()
        if libc.mount(*arguments):
            raise OSError(ctypes.get_errno(), "mount")

    def serve(self):
        while True:
            data = os.read(self.file, 1 << 20)
            threading.Thread(target=self.answer, args=(data,), daemon=True).start()

    def answer(self, data):
        _, code, unique, node, *_ = HEADER.unpack_from(data)
        if code in (FORGET, BATCH_FORGET, INTERRUPT):
            return
        try:
            body, error = self.body(code, node, data[HEADER.size :]), 0
        except OSError as fault:
            body, error = b"", -fault.errno
        os.write(self.file, struct.pack("<IiQ", 16 + len(body), error, unique) + body)

    def path(self, node):
        return self.folder if node == 1 else f"{self.folder}/{self.names[node - 2]}"

    def body(self, code, node, data):
        if code == INIT:
            numbers = 7, 31, 1 << 17, 0, 64, 48, 4096, 1, 0, 0, 0
            return struct.pack("<4I2H2I2HI28x", *numbers)
        if code == LOOKUP:
            name = data.rstrip(b"\0").decode()
            os.stat(f"{self.folder}/{name}")
            with self.lock:
                if name not in self.names:
                    self.names.append(name)
            node = self.names.index(name) + 2
            entry = struct.pack("<QQQQII", node, 0, 0, 0, 0, 0)
            return entry + _attributes(node, self.path(node))
        if code == GETATTR:
            return bytes(16) + _attributes(node, self.path(node))
        if code in (OPEN, OPENDIR):
            return struct.pack("<QII", 0, DIRECT_IO * (code == OPEN), 0)
        if code == READ:
            self.fail(node)
            _, offset, size = struct.unpack_from("<QQI", data)
            with open(self.path(node), "rb") as file:
                return os.pread(file.fileno(), size, offset)
        if code == STATFS:
            return bytes(80)
        if code in (RELEASE, RELEASEDIR, FLUSH, READDIR):
            return b""
        raise OSError(errno.ENOSYS, "")

    def fail(self, node):
        fault = pathlib.Path(f"{self.path(node)}.fault")
        with self.lock:
            kind, *more = fault.read_text().split() if fault.exists() else [""]
            if kind == "EIO" and more:
                left = int(more[0]) - 1
                fault.write_text(f"EIO {left}") if left else fault.unlink()
        everywhere = pathlib.Path(self.folder, ".fault")
        share = float(everywhere.read_text().split()[1]) if everywhere.exists() else 0
        if kind == "EIO" or random.random() < share:
            raise OSError(errno.EIO, "")
        if kind == "slow":
            time.sleep(float(more[0]))
        while kind == "hang" and fault.exists():
            time.sleep(0.05)


if __name__ == "__main__":
    Server(*sys.argv[1:]).serve()
