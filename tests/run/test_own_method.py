"""The page on a method of one's own: its code runs, and keeps the contract."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from clam_project import write_project

from wsi_jax.run.config_file import read_config
from wsi_jax.run.migrate.project import Options, read_project
from wsi_jax.run.run_experiment import run
from wsi_jax.types import Bag, Task

PAGE = pathlib.Path(__file__).parents[2] / "docs/own_method.md"


@pytest.fixture
def config(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len([line for line in code.splitlines() if line]) <= 50
    (tmp_path / "my_method.py").write_text(code)
    return read_config(str(tmp_path / "my_method.py"), "Experiment")


def bag_of(n, length, fill=0.0):
    """Four slides, every second with tiles that no other has, padded with `fill`."""
    x = np.random.default_rng(0).normal(size=(4, n, 6)).astype(np.float32)
    x[1::2, :3, 0] += 6
    padded = np.full((4, length, 6), fill, np.float32)
    padded[:, :n] = x
    mask = np.broadcast_to(np.arange(length) < n, (4, length))
    target = np.array([0, 1, 0, 1], np.int32)
    return jax.tree.map(jnp.asarray, Bag(padded, mask, target, np.ones(4, np.float32)))


def test_it_learns_and_padding_is_invisible(config, key):
    (stage,) = config.method.stages(Task(("a", "b")), optax.adam(0.1))
    method, bag = stage.method, bag_of(20, 20)
    step = jax.jit(method.step)
    state = method.init(key, bag)
    state, first = step(state, bag)
    for _ in range(80):
        state, last = step(state, bag)
    assert last["loss"] < 0.3 * first["loss"]
    predict = jax.jit(method.predict)
    short = predict(state.params, bag_of(5, 5), key)
    long = predict(state.params, bag_of(5, 9, fill=7.0), key)
    np.testing.assert_allclose(short.logits, long.logits, rtol=1e-5)
    np.testing.assert_allclose(short.attention, long.attention[:, :5], rtol=1e-5)
    np.testing.assert_array_equal(long.attention[:, 5:], 0)


@pytest.mark.long
def test_a_run_of_it_ends_in_a_report(config, tmp_path):
    from wsi_jax.data.cohort import write_manifest

    write_project(tmp_path / "clam", folds=1)
    project = read_project(tmp_path / "clam", Options())
    write_manifest(tmp_path / "slides.csv", project.folds[0])
    config.data.manifest = str(tmp_path / "slides.csv")
    config.precomputed = str(project.features)
    config.train.steps, config.train.batch = 8, 8  # one for each device
    assert run(config, tmp_path / "run").is_file()
