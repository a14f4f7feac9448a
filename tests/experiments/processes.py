"""Runs in processes of their own: finished or killed, and what they leave."""

import signal
import time

import pytest
from words import config_from

from wsi_jax.commands.config_command_line import run_training
from wsi_jax.locks import LockedError, locked


def cohort_command(file, folder, manifest, **settings):
    """Module and words of a run: of a config file, in a folder, without pictures."""
    fields = {"run_dir": folder, "data.manifest": manifest, "heatmaps": 0} | settings
    words = (f"--config.{name}={value}" for name, value in fields.items())
    return "experiments.cohort", f"--config={file}", *words


def finish(process):
    assert process.wait() == 0, process.log.read_text()


def go_on(command):
    """Gives a command of `cohort_command` again, in this process: starting costs."""
    _, *words = command
    with config_from(*words) as config:
        run_training(config, "again")


def kill_at(process, folder, pattern, which=signal.SIGKILL):
    """Ends a process by a signal as soon as there is a file; returns its exit code.

    Until then no other may work in the folder.
    """
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.log.read_text()
        time.sleep(0.002)
    with pytest.raises(LockedError, match=f"in use by process {process.pid} on"):
        locked(folder, "wait").__enter__()
    process.send_signal(which)
    return process.wait()
