"""Several processes train as one does; where one ends, all do, and go on together."""

import contextlib
import pathlib
import random
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from processes import cohort_command, finish, go_on
from run_files import by_slide, outputs, read_json

from wsi_jax.training.log import read_metrics

METHODS = pathlib.Path(__file__).with_name("tiny_methods.py")
# Not max: which tile is the greatest may hang on the last digit.
NAMES = ("mean", "clam", "streaming", "sampling", "pooling", "joint", "sasha")
ENDS_S = 60  # in which processes end where another has


@pytest.fixture
def two(start):
    """Starts a command as two processes of four devices each."""

    def processes(command):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        fields = {"coordinator": address, "processes": 2}
        fields |= {"wait_s": 20, "patience_s": 10}
        cluster = [f"--config.cluster.{name}={value}" for name, value in fields.items()]
        return [
            start(
                *command, *cluster, f"--config.cluster.process={i}",
                JAX_NUM_CPU_DEVICES="4",
            )
            for i in range(2)
        ]  # fmt: skip

    return processes


def trace(folder):
    """Every number of training and validation, by stage and step."""
    return {
        (path.parent.name, line.pop("step")): line
        for path in sorted(folder.glob("*/metrics.jsonl"))
        for line in read_metrics(path)
    }


def assert_alike(one, other):
    """Losses, metrics and predictions of two runs, to rounding."""
    first, second = trace(one), trace(other)
    assert first.keys() == second.keys()
    for step, numbers in first.items():
        assert numbers.keys() == second[step].keys()
        for name, value in numbers.items():
            close = 1e-5 if name.endswith("loss") else 1e-3  # else ranks and norms
            assert abs(value - second[step][name]) <= close * (1 + abs(value)), name
    tables = [by_slide(folder / "predictions.csv") for folder in (one, other)]
    assert list(tables[0]) == list(tables[1])
    p = np.array([[float(line["p_tumor"]) for line in t.values()] for t in tables])
    np.testing.assert_allclose(p[0], p[1], atol=1e-5)
    ends = [read_json(folder / "metrics.json") for folder in (one, other)]
    assert ends[0]["test.n"] == ends[1]["test.n"]
    costs = [read_json(folder / "cost.json") for folder in (one, other)]
    for name in ("slides", "steps"):
        assert costs[0][name] == costs[1][name], name


def test_two_processes_are_one(two, manifest, tmp_path):
    """Each reads slides of its own; a batch of five lies on eight devices."""
    command = lambda name: cohort_command(METHODS, tmp_path / name, manifest)
    first, second = two(command("two"))
    go_on(command("alone"))
    finish(first)
    finish(second)
    assert "report:" in first.log.read_text()
    assert "report:" not in second.log.read_text()
    costs = [read_json(tmp_path / name / "cost.json") for name in ("two", "alone")]
    for name in ("tiles", "bytes_decoded", "flops"):
        assert costs[0][name] == costs[1][name]
    assert_alike(tmp_path / "alone", tmp_path / "two")


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_of_four_devices_are_one_of_one(
    start, two, manifest, tmp_path, name
):
    command = lambda folder: cohort_command(
        f"{METHODS}:{name}", tmp_path / folder, manifest
    )
    alone = start(*command("alone"), JAX_NUM_CPU_DEVICES="1")
    for process in (*two(command("two")), alone):
        finish(process)
    assert_alike(tmp_path / "alone", tmp_path / "two")


@pytest.mark.long
def test_where_one_process_is_asked_to_stop_all_do_and_one_goes_on(
    two, manifest, tmp_path
):
    """On fewer devices, with the same losses."""
    command = lambda name: cohort_command(METHODS, tmp_path / name, manifest)
    processes = two(command("two"))
    wait_for(processes, tmp_path / "two", "train/state/10")
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        assert process.wait(ENDS_S) == 128 + signal.SIGTERM, process.log.read_text()
    assert "stopped by SIGTERM; what is done is kept" in processes[0].log.read_text()
    go_on(command("two"))
    go_on(command("alone"))
    assert_alike(tmp_path / "alone", tmp_path / "two")


@pytest.mark.long
def test_killed_at_any_moment_it_ends_as_if_nothing_had_been(two, manifest, tmp_path):
    """Twenty times, one process or the other; the one that is left ends by itself."""
    command = lambda name: cohort_command(
        METHODS, tmp_path / name, manifest, **{"train.save_every": 2}
    )
    processes = two(command("undisturbed"))
    began = time.monotonic()
    for process in processes:
        finish(process)
    whole_s, draw, kills = time.monotonic() - began, random.Random(0), 0
    while kills < 20:
        folder = tmp_path / f"killed_{kills}"
        while not (folder / "report.html").exists():
            after_s = draw.uniform(0.1, 1.0) * whole_s if kills < 20 else None
            kills += killed(two(command(folder.name)), draw.randrange(2), after_s)
        assert outputs(folder) == outputs(tmp_path / "undisturbed")


def killed(processes, which, after_s):
    """Whether one was killed before its end; all have ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        processes[which].wait(after_s)
    alive = processes[which].poll() is None
    processes[which].kill()
    for process in processes:
        try:
            process.wait(ENDS_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"process {which} was killed: {process.log.read_text()}")
    return alive


def wait_for(processes, folder, pattern):
    """Waits until a run has written a file."""
    while not any(folder.glob(pattern)):
        for process in processes:
            assert process.poll() is None, process.log.read_text()
        time.sleep(0.01)
