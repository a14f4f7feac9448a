"""A disk without room stops a run with one message, and nothing is lost."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from run_files import table

from wsi_jax.commands import config_command_line
from wsi_jax.data.disk_space import check_space
from wsi_jax.data.features import (
    FeatureMetadata,
    feature_shape,
    is_whole,
    read_features,
    write_features,
)
from wsi_jax.run.extract import extract_command
from wsi_jax.training.log import read_metrics


@pytest.fixture
def disk(tmp_path):
    """A disk of its own; disk(kib) makes or resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(kib):
        again = ["-o", "remount"] if os.path.ismount(folder) else ["-t", "tmpfs"]
        options = [*again, "-o", f"size={kib}k", "tmpfs", str(folder)]
        done = subprocess.run(["mount", *options], capture_output=True)
        if done.returncode:
            pytest.skip("only root may mount a small disk")
        return folder

    yield sized
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder, leave_kib):
    """Leaves so much room; none at all where others take what seemed free."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with contextlib.suppress(OSError):
        (folder / "ballast").write_bytes(bytes(free - 1024 * leave_kib))


METADATA = FeatureMetadata(
    slide_id="a", shape=(100, 100), mpp=0.5, target_mpp=0.5, size_px=32, overlap_px=0,
    encoder="resnet18", config_hash="c", bad_tiles=0,
)  # fmt: skip


def test_features_that_do_not_fit_stop_before_they_are_made(disk, command):
    folder = disk(4)
    message = command(f"--config.features={folder / 'features'}")
    assert message.startswith(f"FeatureError: {folder}/features/")
    assert "tiles take" in message
    assert "name another folder with --config.features" in message
    assert not list(folder.rglob("*.h5"))


def test_a_disk_that_fills_up_while_features_are_written(disk):
    """What was there stays, no half file does, and the error has the file's name."""
    folder = disk(256)
    x, yx = np.ones((500, 64), np.float32), np.zeros((500, 2), np.int64)
    write_features(folder / "a.h5", x, yx, METADATA)
    fill(folder, 16)
    for name in ("a.h5", "b.h5"):
        with pytest.raises(OSError, match=rf"{name}'$") as caught:
            write_features(folder / name, x, yx, METADATA)
        assert "no space left on its disk" in config_command_line.error_message(
            caught.value, folder
        )
    assert sorted(p.name for p in folder.iterdir()) == ["a.h5", "ballast"]
    assert is_whole(folder / "a.h5", "c")


def test_a_disk_that_is_full_stops_a_run_that_then_goes_on(disk, command):
    """Full before the first slide, then while training; both times nothing is lost."""
    plan = ("--config.train.steps=30", "--config.train.patience=0")
    folder = disk(4_000)
    run, state = folder / "run", folder / "run" / "train" / "state"

    def stops():
        """Runs until the disk is full."""
        message = command(f"--config.run_dir={run}", *plan)
        (folder / "ballast").unlink()
        assert str(run) in message
        assert "no space left on its disk. Free some and give the same" in message
        assert len(message.splitlines()) == 1
        assert not (run / "report.html").exists()

    def fill_after_a_checkpoint():
        while not any(path.name.isdigit() for path in state.glob("*")):
            time.sleep(1e-3)
        fill(folder, 0)

    fill(folder, 8)
    stops()
    filling = threading.Thread(target=fill_after_a_checkpoint, daemon=True)
    filling.start()
    stops()
    filling.join()
    assert list(state.iterdir())  # to go on from
    # A disk that fills up within a write leaves the half of it, until a run goes on.
    half = state / "25.orbax-checkpoint-tmp"
    half.mkdir(exist_ok=True)
    (half / "cut").write_text("short")
    log = run / "train" / "metrics.jsonl"
    first, *rest = read_metrics(log)
    marked = [first | {"mark": 1}, *rest]  # stays only if the run goes on
    log.write_text("".join(json.dumps(line) + "\n" for line in marked))
    assert command(f"--config.run_dir={run}", *plan) is None
    assert not [*folder.rglob("*.orbax-checkpoint-tmp")]
    lines = read_metrics(log)
    assert lines[0]["mark"] == 1
    steps = [line["step"] for line in lines if "train.loss" in line]
    assert steps == [5, 10, 15, 20, 25, 30]
    assert len(table(run / "predictions.csv")) == 6


def test_a_disk_that_fills_up_stops_extraction_and_refuses_no_slide(
    disk, tiny, tmp_path
):
    """So does one that may only be read. Then the rest is made, and nothing else."""
    config, folder = tiny(), disk(4_000)
    elsewhere = extract_command.run(config, tmp_path / "elsewhere")
    whole = {record.slide_id: record.features[0] for record in elsewhere}
    # Room enough for the numbers of all slides, and not for their files.
    need = sum(n * (2 * d + 8) for n, d in map(feature_shape, whole.values()))
    config.features = str(folder / "features")
    fill(folder, need // 1024 + 8)

    def message():
        with pytest.raises(OSError, match=r"No space|Read-only") as caught:
            extract_command.run(config, tmp_path / "run")
        return config_command_line.error_message(caught.value, folder)

    assert re.search(r"/features/.*\.h5: no space left on its disk", message())
    first = {p: p.stat().st_mtime_ns for p in folder.rglob("*.h5")}
    assert 0 < len(first) < len(whole)
    assert not [*folder.rglob("*.part")]
    (folder / "ballast").unlink()
    for mode in ("ro", "rw"):
        if mode == "rw":
            assert "may only be read; name another folder" in message()
        options = ["mount", "-o", f"remount,{mode}", str(folder)]
        subprocess.run(options, check=True)
    records = extract_command.run(config, tmp_path / "run")
    assert not any(record.refusal for record in records)
    assert {p: p.stat().st_mtime_ns for p in first} == first
    for record in records:
        ours, theirs = record.features[0], whole[record.slide_id]
        np.testing.assert_array_equal(read_features(ours).x, read_features(theirs).x)


def test_a_file_the_system_refuses_to_grow(tiny_file, manifest, tmp_path):
    """A quota, where no disk can be mounted: the process ends with one line."""
    limited = (
        "import resource, runpy; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384)); "
        "runpy.run_module('experiments.cohort', run_name='__main__')"
    )
    config = ["--config", str(tiny_file), f"--config.data.manifest={manifest}"]
    words = [*config, f"--config.run_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-c", limited, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("it goes on from where it was")
    assert "Traceback" not in done.stderr


def test_room_is_asked_of_the_disk_that_will_hold_the_files(tmp_path):
    check_space(tmp_path / "not" / "yet" / "there", 1000, 512)
    with pytest.raises(ValueError, match=r"there: the features of 10+ tiles take"):
        check_space(tmp_path / "not" / "there", 10**13, 512)
