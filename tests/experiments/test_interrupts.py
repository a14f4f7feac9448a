"""SIGTERM and Ctrl-C end a command in order: real processes, real signals."""

import signal
import subprocess
import sys

import pytest

# Prints a word, waits for a line, and prints how many steps it took.
COMMAND = """
import sys, time
from wsi_jax.run.interrupts import deferred, stoppable

@stoppable()
def main(waits):
    if not waits:
        print("ready", flush=True)
        time.sleep(600)
    with deferred() as interrupted:
        print("ready", flush=True)
        while not interrupted():
            time.sleep(0.001)
        print("asked", flush=True)
        sys.stdin.readline()
        print("saved", flush=True)
    print("never")

main(sys.argv[1:] == ["waits"])
"""


@pytest.fixture
def start():
    started = []

    def process(*words):
        pipe = subprocess.PIPE
        one = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words],
            stdin=pipe, stdout=pipe, stderr=pipe, text=True,
        )  # fmt: skip
        started.append(one)
        assert one.stdout.readline() == "ready\n"
        return one

    yield process
    for one in started:
        one.kill()
        one.communicate()


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.mark.parametrize("which", CODES, ids=lambda which: which.name)
def test_a_command_ends_with_one_line_and_its_code(start, which):
    one = start()
    one.send_signal(which)
    out, err = one.communicate()
    assert one.returncode == CODES[which]
    assert out == ""
    assert err.splitlines() == [
        f"stopped by {which.name}; what is done is kept: give the same command again "
        "to go on"
    ]


def test_where_it_is_deferred_the_step_ends_first_though_asked_twice(start):
    """`timeout` sends SIGTERM twice."""
    one = start("waits")
    one.send_signal(signal.SIGTERM)
    assert one.stdout.readline() == "asked\n"
    one.send_signal(signal.SIGTERM)
    out, err = one.communicate("\n")
    assert (one.returncode, out, err.count("\n")) == (143, "saved\n", 1)


def test_a_second_ctrl_c_ends_at_once(start):
    one = start("waits")
    one.send_signal(signal.SIGINT)
    assert one.stdout.readline() == "asked\n"
    one.send_signal(signal.SIGINT)
    assert one.wait() == -signal.SIGINT
