"""One small practice cohort and one finished run of it, for all tests here."""

import dataclasses
import os
import pathlib
import runpy
import subprocess
import sys

import jax
import pytest
from run_files import table, write_table
from words import config_from

from experiments.phantoms.artefacts import Artefacts
from experiments.phantoms.make_cohort import MakeCohort, make_cohort
from wsi_jax.commands import config_command_line
from wsi_jax.data.cohort import read_manifest
from wsi_jax.run import run_experiment as experiment

ROOT = pathlib.Path(__file__).parent.parent.parent
TINY = pathlib.Path(__file__).parent / "tiny.py"


@pytest.fixture(scope="session")
def tiny_file() -> pathlib.Path:
    """The config file, for the command line."""
    return TINY


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> pathlib.Path:
    """Of 20 plain slides: 10 train, 4 validate, 6 test."""
    config = MakeCohort(
        out=str(tmp_path_factory.mktemp("practice")),
        n_train=10,
        n_val=4,
        n_test=6,
        side_px=384,
        styles=6,
        workers=2,
        artefacts=Artefacts(mpps=(0.5, 0.8)),
    )
    return make_cohort(config)


@pytest.fixture(scope="session")
def tiny(manifest, tmp_path_factory):
    """A fresh copy of the config; all runs share one folder of features."""
    features = tmp_path_factory.mktemp("features")

    def config():
        made = runpy.run_path(str(TINY))["get_config"]()
        made.data.manifest = str(manifest)
        made.features = str(features)
        return made

    return config


@pytest.fixture
def short(tiny):
    """Four steps, no pictures."""
    config = tiny()
    config.heatmaps = 0
    config.train = dataclasses.replace(
        config.train, steps=4, validate_every=2, save_every=2
    )
    return config


@pytest.fixture
def command(tiny_file, tiny, monkeypatch, tmp_path):
    """Runs the command in this process; gives its error message, None without one."""

    def run(*words):
        config = tiny()
        named = {
            "--config.data.manifest": config.data.manifest,
            "--config.features": config.features,
            "--config.run_dir": tmp_path / "run",
            "--config.heatmaps": 0,
            "--config.train.steps": 4,
        }
        line = [f"{name}={value}" for name, value in named.items()]
        try:
            with config_from("--config", tiny_file, *line, *words) as config:
                config_command_line.run_training(config, "tiny")
        except SystemExit as stop:
            return stop.code
        return None

    return run


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory) -> pathlib.Path:
    """A finished run with features of its own; not to be changed."""
    config = tiny()
    config.features = ""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    experiment.run(config, folder)
    return folder


@pytest.fixture(scope="session")
def row(manifest):
    """The first test slide's line of the manifest."""
    return next(r for r in read_manifest(manifest).rows if r.split == "test")


@pytest.fixture
def edited(manifest, tmp_path):
    """A copy of the manifest, changed row by row: edited(change) -> its path."""

    def write(change) -> pathlib.Path:
        rows = table(manifest)
        for row in rows:
            for name in ("path", "mask_path", "annotation_path"):
                row[name] = row[name] and str(manifest.parent / row[name])
        rows = [row for row in map(change, rows) if row]
        return write_table(tmp_path / "edited.csv", rows)

    return write


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Starts a command in a process of its own; it shares compiled programs."""
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    started = []

    def process(module, *words, **more):
        log = tmp_path_factory.mktemp("log") / "log.txt"
        with log.open("w") as file:
            command = [sys.executable, "-m", module, *map(str, words)]
            env = os.environ | settings | more
            one = subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file)
        started.append(one)
        one.log = log
        return one

    yield process
    for one in started:
        one.kill()
        one.wait()
