"""Several processes train as one does, to rounding."""

import socket

import numpy as np
import pytest
from processes import cohort_command, finish
from run_files import by_slide, read_json

from wsi_jax.training.log import read_metrics

FEW = {"train.steps": 20, "train.batch": 5, "train.log_every": 1}


@pytest.fixture
def together(start):
    """Gives a command to two processes of four devices each, and waits for both."""

    def run(command):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        cluster = (
            f"--config.cluster.coordinator={address}",
            "--config.cluster.processes=2",
        )
        processes = [
            start(*command, *cluster, f"--config.cluster.process={i}", **FOUR)
            for i in range(2)
        ]
        for process in processes:
            finish(process)
        return processes

    return run


FOUR = {"JAX_NUM_CPU_DEVICES": "4"}


def trace(folder):
    """Every number of training and validation, by step."""
    return [
        (line.pop("step"), line)
        for line in read_metrics(folder / "train" / "metrics.jsonl")
    ]


def assert_alike(one, other):
    """Losses, metrics and predictions of two runs, to rounding."""
    for (step, here), (there_step, there) in zip(trace(one), trace(other), strict=True):
        assert (step, sorted(here)) == (there_step, sorted(there))
        for name, value in here.items():
            np.testing.assert_allclose(there[name], value, rtol=1e-4, atol=1e-5)
    first, second = (read_json(folder / "metrics.json") for folder in (one, other))
    assert first["test.n"] == second["test.n"]
    tables = [by_slide(folder / "predictions.csv") for folder in (one, other)]
    assert list(tables[0]) == list(tables[1])
    for name, line in tables[0].items():
        assert abs(float(line["p_tumor"]) - float(tables[1][name]["p_tumor"])) < 1e-5


def test_two_processes_are_one(start, together, tiny_file, manifest, tmp_path):
    """Each extracts and reads slides of its own; a batch of 5 is over 8 devices."""
    command = lambda name: cohort_command(tiny_file, tmp_path / name, manifest, **FEW)
    alone = start(*command("alone"), JAX_NUM_CPU_DEVICES="1")
    first, second = together(command("together"))
    finish(alone)
    assert "report:" in first.log.read_text()
    assert "report:" not in second.log.read_text()
    assert_alike(tmp_path / "alone", tmp_path / "together")
