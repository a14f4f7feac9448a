"""What is learnt on some devices is opened on any others, by another process."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import chex
import contract_cases as contract
import jax
import numpy as np
import optax
import pytest

from wsi_jax.training.checkpoint import Checkpoints, digest
from wsi_jax.training.compile import compile_method, replicate, split
from wsi_jax.training.mesh import LARGE, make_mesh

ROOT = pathlib.Path(__file__).parent.parent.parent
# Opens what eight devices have saved, and saves it again.
ON_ONE = """
import json, sys
import jax
from wsi_jax.training.checkpoint import Checkpoints, digest
there, here, shapes = sys.argv[1:]
assert jax.device_count() == 1
struct = lambda leaf: jax.ShapeDtypeStruct(tuple(leaf[:-1]), leaf[-1])
like = jax.tree.map(struct, json.loads(shapes), is_leaf=lambda x: isinstance(x, list))
restored, memory = Checkpoints(there).restore(like)
assert all(leaf.devices() == set(jax.devices()) for leaf in jax.tree.leaves(restored))
again = Checkpoints(here)
again.save(0, restored, memory)
again.close()
print(digest(restored))
"""


@pytest.fixture(scope="module")
def weights():
    """Parameters of a method of every family, by its last stage, which has them all.

    One lies on all of eight devices and the others on the eighth: Orbax takes long to
    save what lies on many.
    """
    methods = {
        "abmil": (contract.METHODS["abmil"], contract.bags(), {}),
        "clam": (contract.METHODS["clam-mb"], contract.bags(), {}),
        "streaming": (contract.IMAGES["streaming-clam"], contract.images(), {}),
        "sim-clr": (contract.TILES["sim-clr"], contract.tiles(), {}),
        "sasha": (contract.ZOOMS["sasha"], contract.zooms(), {}),
    }
    for name in ("attention-sampling", "patch-all", "attention-pooling"):
        methods[name] = contract.CROPS[name], contract.overviews(), contract.OVERVIEW
    shapes, tx = {}, optax.identity()
    for name, (config, bag, form) in methods.items():
        *_, stage = config.stages(contract.TASK, tx, **form)
        state = jax.eval_shape(stage.method.init, jax.random.key(0), bag)
        shapes[name] = state.params
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype)
    drawn = jax.tree.map(draw, shapes)
    on_all = {"abmil": replicate(drawn.pop("abmil"), make_mesh())}
    return on_all | replicate(drawn, make_mesh(jax.devices()[-1:]))


def test_weights_of_each_method_go_from_eight_devices_to_one_and_back(
    weights, tmp_path
):
    saved = Checkpoints(tmp_path / "eight")
    saved.save(0, weights, {})
    saved.close()
    shapes = jax.tree.map(lambda leaf: [*leaf.shape, str(leaf.dtype)], weights)
    folders = [str(tmp_path / name) for name in ("eight", "one")]
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE, *folders, json.dumps(shapes)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest(weights)
    like = replicate(weights, make_mesh())
    restored, _ = Checkpoints(tmp_path / "one").restore(like)
    chex.assert_trees_all_equal(restored, weights)
    assert all(len(leaf.devices()) == 8 for leaf in jax.tree.leaves(restored))


def test_an_optimiser_divided_among_devices_is_whole(tmp_path):
    """Each holds an eighth of its large arrays; the same is learnt."""
    bag, eight = contract.bags(), make_mesh()
    wide = dataclasses.replace(contract.METHODS["abmil"], width=1 << 14)
    (stage,) = wide.stages(contract.TASK, optax.adam(1e-2))

    def learnt(spread):
        method = compile_method(stage.method, eight, spread=spread)
        batch = split(bag, eight)
        state = method.init(jax.random.key(0), batch)
        for _ in range(2):
            state, _ = method.step(state, batch)
        return state

    whole, divided = learnt(False), learnt(True)
    chex.assert_trees_all_close(divided.params, whole.params, rtol=1e-5, atol=1e-6)
    for leaf in jax.tree.leaves(divided.opt):
        part = np.prod(leaf.sharding.shard_shape(leaf.shape))
        assert part == (leaf.size // 8 if leaf.size >= LARGE else leaf.size)
    assert all(a.is_fully_replicated for a in jax.tree.leaves(divided.params))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, divided, {})
    checkpoints.close()
    restored, _ = Checkpoints(tmp_path).restore(whole)  # where nothing is divided
    chex.assert_trees_all_equal(restored.opt, divided.opt)
