"""Checkpoints: what was saved comes back, wherever it is to lie."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    digest,
    is_finite,
)
from wsi_jax.training.compile import replicate
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import TrainState

ONE, EIGHT = make_mesh(jax.devices()[:1]), make_mesh()


def state(value=1.0, mesh=ONE, impl="threefry2x32") -> TrainState:
    params = {
        "kernel": jnp.full((3, 2), value),
        "half": jnp.full(2, value, jnp.bfloat16),
    }
    opt = (params, {"count": jnp.int32(7)}, ())
    key = jax.random.key(5, impl=impl)
    return replicate(TrainState(jnp.int32(4), params, opt, key), mesh)


def comparable(tree):
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, tree)


def save(folder, step, tree, memory=None):
    checkpoints = Checkpoints(folder)
    checkpoints.save(step, tree, memory or {})
    checkpoints.close()


def steps_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_state_and_key_come_back(tmp_path, impl):
    saved = state(impl=impl)
    save(tmp_path, 4, saved)
    restored, _ = Checkpoints(tmp_path).restore(state(0.0, impl=impl))
    chex.assert_trees_all_equal(comparable(restored), comparable(saved))
    chex.assert_trees_all_equal_dtypes(restored, saved)
    draw = lambda s: jax.random.normal(jax.random.fold_in(s.key, s.step), (3,))
    np.testing.assert_array_equal(draw(restored), draw(saved))


@pytest.mark.parametrize(("before", "after"), [(ONE, EIGHT), (EIGHT, ONE)])
def test_saved_on_one_restored_on_eight_and_back(tmp_path, before, after):
    save(tmp_path, 4, state(mesh=before))
    restored, _ = Checkpoints(tmp_path).restore(state(0.0, mesh=after))
    chex.assert_trees_all_equal(comparable(restored), comparable(state(mesh=after)))
    kernel = restored.params["kernel"]
    assert len(kernel.addressable_shards) == after.size
    assert kernel.sharding.is_fully_replicated
    # Without keys, shapes alone will do.
    save(tmp_path / "params", 4, state(mesh=before).params)
    like = jax.eval_shape(lambda: state().params)
    restored, _ = Checkpoints(tmp_path / "params").restore(like)
    chex.assert_trees_all_equal(restored, state().params)


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_are_kept(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep)
    assert checkpoints.restore(state()) is None
    memory = {"best": {"step": 0, "value": -math.inf}}  # before the first validation
    for step in (5, 10, 15):
        checkpoints.save(step, state(float(step)), memory | {"step": step})
    checkpoints.close()
    assert steps_in(tmp_path) == ["10", "15"][-keep:]
    restored, again = Checkpoints(tmp_path).restore(state())
    assert again == memory | {"step": 15}
    assert float(restored.params["kernel"][0, 0]) == 15


def test_a_step_may_be_saved_again(tmp_path):
    """A run killed between two saves of one step comes by there again."""
    save(tmp_path, 4, state(1.0), {"by": "killed"})
    save(tmp_path, 4, state(2.0), {"by": "resumed"})
    restored, memory = Checkpoints(tmp_path).restore(state())
    assert memory == {"by": "resumed"}
    assert float(restored.params["kernel"][0, 0]) == 2


def test_what_a_kill_left_half_written_is_not_a_checkpoint(tmp_path):
    save(tmp_path, 4, state())
    (tmp_path / "8.orbax-checkpoint-tmp" / "tree").mkdir(parents=True)
    _, _ = Checkpoints(tmp_path).restore(state())
    save(tmp_path, 8, state(2.0))
    restored, _ = Checkpoints(tmp_path).restore(state())
    assert float(restored.params["kernel"][0, 0]) == 2


@pytest.mark.parametrize("damage", ["cut", "gone", "structure"])
def test_a_checkpoint_that_cannot_be_used_is_one_error(tmp_path, damage):
    save(tmp_path / "state", 4, state())
    like = state()
    for path in (tmp_path / "state" / "4" / "tree").rglob("*"):
        if path.is_file() and damage == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif path.is_file() and damage == "gone":
            path.unlink()
    if damage == "structure":
        like = like._replace(params=like.params | {"more": jnp.zeros(3)})
    with pytest.raises(CheckpointError, match=r"state/4 is damaged .* delete "):
        Checkpoints(tmp_path / "state").restore(like)


def test_a_step_taken_while_it_is_written_does_not_change_it(tmp_path):
    """Training goes on at once, in the very memory that was saved."""
    bump = jax.jit(lambda w: w + 1, donate_argnums=0)
    weights = replicate(jnp.zeros((1024, 1024)), EIGHT)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, {"w": weights}, {})
    for _ in range(5):
        weights = bump(weights)
    checkpoints.close()
    restored, _ = Checkpoints(tmp_path).restore({"w": weights})
    np.testing.assert_array_equal(restored["w"], 0)


def test_a_digest_is_of_names_types_and_values():
    tree = {"a": jnp.arange(3.0), "b": {"c": jnp.zeros(2)}}
    again = replicate(jax.tree.map(jnp.copy, tree), EIGHT)
    assert digest(tree) == digest(again)
    others = (
        {"a": jnp.arange(3.0), "b": {"d": jnp.zeros(2)}},
        {"a": jnp.arange(3.0), "b": {"c": jnp.array([0.0, 1e-30])}},
        {"a": jnp.arange(3), "b": {"c": jnp.zeros(2)}},
        {"a": jnp.arange(3.0)[None], "b": {"c": jnp.zeros(2)}},
    )
    assert len({digest(one) for one in (tree, *others)}) == 5


def test_one_number_that_is_not_finite_is_noticed():
    tree = {"n": jnp.int32(1), "half": jnp.ones(2, jnp.bfloat16)}
    assert is_finite(tree)
    for bad in (math.nan, math.inf):
        assert not is_finite(tree | {"half": tree["half"].at[1].set(bad)})
