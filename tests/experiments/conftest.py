"""One small practice cohort and one finished run of it, for all tests here."""

import csv
import dataclasses
import os
import pathlib
import runpy
import subprocess
import sys

import pytest
from words import config_from

from experiments.phantoms.artefacts import Artefacts
from experiments.phantoms.make_cohort import MakeCohort, make_cohort
from wsi_jax import launch
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
                launch.run_training(config, "tiny")
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


@pytest.fixture
def edited(manifest, tmp_path):
    """A copy of the manifest, changed row by row: edited(change) -> its path."""

    def write(change) -> pathlib.Path:
        with open(manifest, newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            for name in ("path", "mask_path", "annotation_path"):
                row[name] = row[name] and str(manifest.parent / row[name])
        rows = [row for row in map(change, rows) if row]
        path = tmp_path / "edited.csv"
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Starts a command in a process of its own, with nothing of this one's settings."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith("JAX_")}
    settings = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    started = []

    def process(module, *words):
        log = tmp_path_factory.mktemp("log") / "log.txt"
        with log.open("w") as file:
            command = [sys.executable, "-m", module, *words]
            one = subprocess.Popen(
                command, cwd=ROOT, env=kept | settings, stdout=file, stderr=file
            )
        started.append(one)
        one.log = log
        return one

    yield process
    for one in started:
        one.kill()
        one.wait()
