"""Files are whole or not there, whoever else writes them and whenever one is killed."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from wsi_jax.files import DAY_S, machine_id, replacing, sweep, write_text

WRITER = """
import sys, time
from wsi_jax.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary, flush=True)
    time.sleep(600)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def left_by(folder, machine, pid):
    path = folder / f".slide.h5.{machine}-{pid}-01234567.part"
    path.write_text("half")
    return path


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A process id that was a writer's, and the temporary file that it has left."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", WRITER, str(folder / "slide.h5")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        left = folder / os.path.basename(writer.stdout.readline().strip())
        sweep(folder)
        assert left.is_file()  # it may still be written to
        writer.send_signal(signal.SIGKILL)
    assert names(folder) == [left.name]
    return writer.pid, left


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "slides.csv"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert not path.exists()
    assert path.read_text() == "one"  # the last to end
    assert names(tmp_path) == ["slides.csv"]


def test_what_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "slides.csv"
    write_text(path, "\u00b5m\n")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyError("label")

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == "\u00b5m\n".encode()
    assert names(tmp_path) == ["slides.csv"]


def test_an_error_of_the_disk_names_the_file(tmp_path):
    path = tmp_path / "absent" / "slides.csv"
    with pytest.raises(FileNotFoundError) as caught:
        write_text(path, "")
    assert caught.value.filename == str(path)
    path = tmp_path / "slides.csv"
    with pytest.raises(OSError, match="No space") as caught, replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as caught, replacing(path):
        (tmp_path / "another").read_bytes()
    assert caught.value.filename == str(tmp_path / "another")


def test_what_a_killed_writer_has_left_is_removed(killed, tmp_path):
    pid, left = killed
    sweep(left.parent.parent)
    assert names(left.parent) == []
    deeper = tmp_path / "features" / "1mpp"
    deeper.mkdir(parents=True)
    of_dead = left_by(deeper, machine_id(), pid)
    of_living = left_by(deeper, machine_id(), os.getpid())
    elsewhere, hidden = left_by(deeper, "0" * 8, pid), deeper / ".part"
    hidden.write_text("a user's own")
    sweep(tmp_path)
    kept = {of_living, elsewhere, hidden}
    assert of_dead not in kept
    assert set(deeper.iterdir()) == kept
    long_ago = time.time() - 2 * DAY_S
    os.utime(elsewhere, (long_ago, long_ago))
    sweep(tmp_path)
    assert set(deeper.iterdir()) == {of_living, hidden}
