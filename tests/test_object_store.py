"""An object is whole or absent; a folder of a store is one process's, by its lease."""

import json
import socket
import subprocess
import sys
import time

import pytest

from wsi_jax import files, locks
from wsi_jax.files import Lines, any_path, write_text
from wsi_jax.locks import LEASE, LockedError, locked

HOLDER = """
import sys, time
from wsi_jax import locks
locks.BEAT_S, locks.SETTLE_S = 0.2, 0
from wsi_jax.locks import locked
with locked(sys.argv[1], "-"):
    print("leased", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(bucket, monkeypatch):
    """A folder of the bucket with nothing in it."""
    monkeypatch.setattr(locks, "SETTLE_S", 0)
    bucket.objects.clear()
    return any_path(f"{bucket.path}/run")


def names(bucket):
    return sorted(name.removeprefix("run/") for name in bucket.objects)


def enter(folder):
    with locked(folder, "name another --config.run_dir"):
        return [path.name for path in folder.iterdir()]


def test_a_file_is_one_upload_or_none(bucket, folder):
    uploads = []
    bucket.on_upload = uploads.append
    write_text(folder / "a.txt", "\u00b5m\n")
    assert uploads == ["run/a.txt"]
    assert bucket.objects["run/a.txt"][0] == "\u00b5m\n".encode()

    def fail():
        with files.replacing(folder / "a.txt") as temporary:
            temporary.write_text("half")
            raise KeyError("label")

    with pytest.raises(KeyError):
        fail()
    assert uploads == ["run/a.txt"]


def test_lines_are_uploaded_by_a_flush_and_go_on_in_a_later_process(
    bucket, folder, monkeypatch
):
    lines = Lines(folder / "log")
    lines.add("one")
    assert names(bucket) == []
    lines.flush()
    lines.add("lost with its process")
    later = Lines(folder / "log")
    monkeypatch.setattr(files, "FLUSH_S", 0)
    later.add("two")
    assert bucket.objects["run/log"][0] == b"one\ntwo\n"


def test_a_store_that_does_not_answer_is_named_with_what_it_needs(bucket):
    with pytest.raises(ValueError, match="gs://") as caught:
        any_path("s3://bucket/run")
    del bucket
    assert str(caught.value).startswith("s3://bucket/run: ")
    assert "not implemented" in str(caught.value)
    assert "wsi_jax[gcs]" in str(caught.value)


def test_a_fresh_lease_is_refused_naming_its_holder_and_a_stale_one_taken_over(
    bucket, folder, monkeypatch
):
    with locked(folder, "-"):
        assert names(bucket) == [LEASE]
        held = bucket.objects[f"run/{LEASE}"]
    assert names(bucket) == []
    other = json.loads(held[0]) | {"id": "another", "pid": 7, "machine": "elsewhere"}
    write_text(folder / LEASE, json.dumps(other))
    with pytest.raises(LockedError) as caught:
        enter(folder)
    who = f"process 7 on {socket.gethostname()} since 2"
    assert str(caught.value).startswith(f"{folder} is in use by {who}")
    assert str(caught.value).endswith("--config.run_dir; if it was killed, wait 60 s")
    assert names(bucket) == [LEASE]  # the other's
    stale = other | {"time": time.time() - locks.STALE_S - 1}
    write_text(folder / LEASE, json.dumps(stale))
    assert enter(folder) == [LEASE]
    assert names(bucket) == []
    write_text(folder / LEASE, "{")
    with pytest.raises(LockedError, match="cannot be read"):
        enter(folder)


def test_of_two_that_come_at_once_the_last_to_write_goes_on(bucket, folder):
    """The other reads its lease again before it begins."""

    def come_too(name):
        bucket.on_upload = lambda name: None
        ours = json.loads(bucket.objects[name][0])
        theirs = json.dumps(ours | {"id": "another", "machine": "elsewhere"})
        bucket.upload(name, theirs.ljust(512).encode(), {})

    bucket.on_upload = come_too
    with pytest.raises(LockedError, match="is in use by"):
        enter(folder)
    assert names(bucket) == [LEASE]


@pytest.fixture
def holder(folder):
    """A process that holds the folder's lease, and beats five times a second."""
    command, pipe = [sys.executable, "-c", HOLDER, str(folder)], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as holder:
        assert holder.stdout.readline() == "leased\n"
        yield holder
        holder.kill()


def test_a_holder_beats_and_ends_where_its_lease_is_lost(bucket, folder, holder):
    first = bucket.objects[f"run/{LEASE}"][0]
    while (beat := bucket.objects[f"run/{LEASE}"][0]) == first:
        time.sleep(0.01)
    with pytest.raises(LockedError, match=f"process {holder.pid} on "):
        enter(folder)
    taken = json.loads(beat) | {"id": "another", "machine": "elsewhere"}
    while holder.poll() is None:  # it may just have written its own
        write_text(folder / LEASE, json.dumps(taken | {"time": time.time()}))
        time.sleep(0.1)
    assert holder.returncode == 1
    assert f"{folder} was taken over by process" in holder.stderr.read()
    assert json.loads(bucket.objects[f"run/{LEASE}"][0])["id"] == "another"
