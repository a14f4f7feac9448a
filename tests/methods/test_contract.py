"""What every method must do. A new one adds a line to a family of contract_cases.py.

A method of several stages is a case for each of them.
"""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import (
    CROP_STAGES,
    IMAGES,
    METHODS,
    ONE,
    SMALL,
    TILES,
    ZOOM_STAGES,
    Case,
    bags,
    compiled_case,
    make_case,
)

from wsi_jax.methods import mil
from wsi_jax.training.checkpoint import Checkpoints
from wsi_jax.training.compile import compile_method, replicate, split
from wsi_jax.training.mesh import make_mesh


@pytest.fixture(params=[*METHODS, *IMAGES, *TILES, *CROP_STAGES, *ZOOM_STAGES])
def case(request) -> Case:
    return make_case(request.param)


@pytest.fixture(params=[*METHODS, *ZOOM_STAGES])
def pooled(request) -> Case:
    """A method of features; images have no padding."""
    return make_case(request.param)


def fresh(case, mesh):
    """A copy to donate."""
    return replicate(jax.tree.map(jnp.copy, case.state), mesh)


def steps(compiled, state, mesh, count, bag):
    batch = split(bag, mesh)
    losses = []
    for _ in range(count):
        state, metrics = compiled.step(state, batch)
        losses.append(metrics["loss"])
    return state, np.asarray(losses)


def test_it_learns(case):
    """In 150 steps at most; a few draws of crops may lack what shows the class."""
    state, losses = fresh(case, ONE), []
    learnt = lambda: np.median(losses[-20:]) < np.mean(losses[:3]) / 3
    while len(losses) < 150 and not (len(losses) >= 30 and learnt()):
        state, more = steps(case.compiled, state, ONE, 10, case.bag)
        losses.extend(more)
    assert learnt()


def first_step(case, mesh, bag):
    """Loss and gradient of one step; Adam's first moment is a tenth of the gradient."""
    compiled = case.compiled if mesh is ONE else compile_method(case.method, mesh)
    state, losses = steps(compiled, fresh(case, mesh), mesh, 1, bag)
    adams = [s for s in jax.tree.leaves(state.opt, is_leaf=_has_mu) if _has_mu(s)]
    return losses, jax.device_get([adam.mu for adam in adams])


def _has_mu(state):
    return hasattr(state, "mu")


# One of each kind of step; that of features has a test in float64.
STEPS = (
    "streaming-clam",
    "sim-clr-magnifications",
    "tile-classifier",
    "attention-sampling-train",
    "attention-pooling-scorer",
    "attention-pooling-joint-joint",
    "sasha-updater",
    "sasha-policy",
)


@pytest.mark.parametrize("name", STEPS)
def test_one_device_is_eight(name):
    case = make_case(name)
    one, eight = (first_step(case, mesh, case.bag) for mesh in (ONE, make_mesh()))
    # A small gradient is a sum of terms near 1, which float32 rounds.
    chex.assert_trees_all_close(one, eight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "count"),
    [("clam-sb", 1), ("attention-pooling-classifier", 1), ("sasha-policy", 2)],
)
def test_gradients_are_summed_over_devices_once(name, count):
    """Not in a loop over tiles. A policy's are so at each update, after counting."""
    case = make_case(name)
    args = jax.eval_shape(lambda: (case.state, case.bag))
    step = compile_method(case.method, make_mesh()).step
    text = step.lower(*args).compile().as_text()
    assert len(re.findall(r"all-reduce(?:-start)?\(", text)) == count
    assert not re.search(r"(all-gather|all-to-all|collective-permute)[^ ]*\(", text)


@pytest.mark.usefixtures("x64")
def test_one_device_is_eight_to_the_last_digit():
    config = mil.CLAM(**SMALL, attention=4, sampled=2, dtype=mil.Dtype.float64)
    bag = bags(np.float64)
    case = compiled_case(config, bag)
    wide = lambda a: a.astype(np.float64) if a.dtype == np.float32 else a
    case = case._replace(state=jax.tree.map(wide, case.state))
    one, eight = (first_step(case, mesh, bag) for mesh in (ONE, make_mesh()))
    chex.assert_trees_all_close(one, eight, rtol=1e-12, atol=1e-15)


def test_padding_is_invisible(pooled):
    """Junk behind the mask, NaN included, changes neither prediction nor training.

    Nor does padding to twice the length, but for rounding.
    """
    bag, key = pooled.bag, jax.random.key(1)
    there = lambda a: bag.mask.reshape(bag.mask.shape + (1,) * (a.ndim - 2))
    junk = lambda a: np.where(there(a), a, np.float32(np.nan))
    junk = bag._replace(x=jax.tree.map(junk, bag.x))
    predict = lambda bag: jax.device_get(
        pooled.compiled.predict(pooled.state.params, split(bag, ONE), key)
    )
    clean = predict(bag)
    chex.assert_trees_all_equal(predict(junk), clean)
    trained = lambda bag: (
        steps(pooled.compiled, fresh(pooled, ONE), ONE, 2, bag)[0].params
    )
    chex.assert_trees_all_equal(trained(junk), trained(bag))
    assert not clean.attention[~bag.mask].any()
    np.testing.assert_allclose(clean.attention[:6].sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(clean.counts["tiles"], pooled.tiles)
    wide = lambda a: np.pad(a, [(0, 0), (0, 24)] + [(0, 0)] * (a.ndim - 2))
    longer = bag._replace(x=jax.tree.map(wide, bag.x), mask=wide(bag.mask))
    long = predict(longer)
    long = long._replace(attention=long.attention[:, :24], trace=clean.trace)
    chex.assert_trees_all_close(long, clean, rtol=1e-5, atol=1e-6)


def test_resumed_is_uninterrupted(case, tmp_path):
    whole, _ = steps(case.compiled, fresh(case, ONE), ONE, 3, case.bag)
    half, _ = steps(case.compiled, fresh(case, ONE), ONE, 1, case.bag)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, half, {"best": 0.5})
    checkpoints.close()
    restored, memory = Checkpoints(tmp_path).restore(fresh(case, ONE))
    assert memory == {"best": 0.5}
    assert int(restored.step) == 1
    resumed, _ = steps(case.compiled, restored, ONE, 2, case.bag)
    chex.assert_trees_all_equal(_comparable(resumed), _comparable(whole))


def _comparable(tree):
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, tree)
