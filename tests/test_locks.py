"""One process at a time works in a folder, and none that is dead."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from wsi_jax.files import machine_id
from wsi_jax.locks import LOCK, LockedError, locked

HOLDER = """
import sys, time
from wsi_jax.locks import locked
with locked(sys.argv[1], "-"):
    print("locked", flush=True)
    time.sleep(600)
"""


def enter(folder):
    with locked(folder, "name another --config.run_dir"):
        return sorted(path.name for path in folder.iterdir())


def test_a_folder_in_use_is_refused_naming_its_process_until_a_kill(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(LockedError) as caught:
            enter(folder)
        who = f"process {holder.pid} on {socket.gethostname()} since 2"
        assert str(caught.value).startswith(f"{folder} is in use by {who}")
        assert str(caught.value).endswith("or name another --config.run_dir")
        left = folder / f".slides.csv.{machine_id()}-{holder.pid}-01234567.part"
        left.write_text("half")
        holder.send_signal(signal.SIGKILL)
    assert left.exists()
    assert (folder / LOCK).exists()
    assert enter(folder) == [LOCK]  # swept
    assert list(folder.iterdir()) == []


def test_a_folder_is_free_after_an_error(tmp_path):
    def fail():
        with locked(tmp_path, "-"):
            raise KeyError("label")

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []
    assert enter(tmp_path) == [LOCK]


def test_a_lock_that_was_removed_while_it_was_opened_counts_for_nothing(
    tmp_path, monkeypatch
):
    """Its holder ends between another's opening and locking of the file."""
    first = locked(tmp_path, "-")
    first.__enter__()
    opened, real = [], os.open

    def open_and_end(path, *rest, **kwargs):
        descriptor = real(path, *rest, **kwargs)
        opened.append(os.fstat(descriptor).st_ino)
        if len(opened) == 1:
            first.__exit__(None, None, None)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_end)
    with locked(tmp_path, "-"):
        assert (tmp_path / LOCK).stat().st_nlink == 1
        assert len(opened) == 2
        with pytest.raises(LockedError):
            enter(tmp_path)
