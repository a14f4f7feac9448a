"""Looking, reading and learning in turns is learning at once."""

import chex
import jax
import numpy as np
import optax
import pytest
from glances import CELL, MPP, TASK, batch, method, write_slides

from wsi_jax.methods.patch_all import PatchAll
from wsi_jax.ops.sampling import Estimator
from wsi_jax.training.checkpoint import Checkpoints
from wsi_jax.training.compile import compile_method, make_mesh


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    return write_slides(tmp_path_factory.mktemp("slides"))


def made(config, tx=None):
    tx = tx or optax.sgd(0.1)
    (stage,) = config.stages(TASK, tx, MPP, CELL)
    return compile_method(stage.method, make_mesh(jax.devices()[:1]))


def after_itself(bag):
    """A batch that comes again and again."""
    return bag._replace(x=bag.x._replace(after=bag))


@pytest.mark.parametrize(
    "fields",
    [
        {"stain": 0.2, "spread": 0.1, "tells": True, "alone": 1.0, "deviation": True},
        # Of another number of crops, behind which nothing counts: turned otherwise. All
        # cells lie on the edge too, where what is resampled may be a grey level off.
        {"estimator": Estimator.full, "mpps": (1.0,), "augment": False},
    ],
)
def test_staged_is_pure(views, fields):
    """Loss, update and verdict, to 1e-6: crops are read, or lie on the device."""
    states, said = [], []
    for resident in (True, False):
        config = method(**fields, ahead=False, resident=resident)
        compiled, bag = made(config), batch(config, views, resident)
        state = compiled.init(jax.random.key(0), bag)
        for _ in range(2):
            state, metrics = compiled.step(state, bag)
        states.append(jax.device_get((state.params, metrics)))
        said.append(compiled.predict(state.params, bag, jax.random.key(1)))
    # All cells are summed in another order, which float32 shows.
    full = fields.get("estimator") is Estimator.full
    atol = 1e-5 if full else 1e-6
    chex.assert_trees_all_close(*states, rtol=1e-5, atol=atol)
    said = [one._replace(trace=None) for one in said]
    for one in said:
        np.testing.assert_allclose(one.attention[:3].sum(1), 1, rtol=1e-5)
    drop = lambda one: one._replace(counts=None) if full else one  # of padding
    chex.assert_trees_all_close(*map(drop, said), rtol=1e-5, atol=atol)


def test_a_batch_is_drawn_before_the_last_one_is_learnt_from(views):
    """By parameters one step old; what is drawn is where those said."""
    config = method(ahead=True)
    compiled, bag = made(config), after_itself(batch(config, views, resident=False))
    first = compiled.init(jax.random.key(0), bag)
    drawn = jax.device_get(first.opt.drawn)
    params = jax.device_get(first.params)
    second, _ = compiled.step(first, bag)
    plain = made(method(ahead=False))
    state = plain.init(jax.random.key(0), bag)
    chex.assert_trees_all_equal(jax.device_get(state.params), params)
    state, _ = plain.step(state, bag)
    # The first step draws by the first parameters in either way.
    chex.assert_trees_all_close(second.params, state.params, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(second.opt.drawn.index, drawn.index)
    third, _ = compiled.step(second, bag)
    state, _ = plain.step(state, bag)
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), third.params, state.params)
    assert max(jax.tree.leaves(gaps)) > 1e-6  # and the second by the same


def test_resumed_is_uninterrupted(views, tmp_path):
    """Bit by bit: what was drawn for the next step is in the checkpoint."""
    config = method(ahead=True)
    bag = after_itself(batch(config, views, resident=False))
    compiled = made(config, optax.adam(1e-2))
    state = compiled.init(jax.random.key(0), bag)
    for step in range(4):
        if step == 2:
            checkpoints = Checkpoints(tmp_path)
            checkpoints.save(2, state, {})
            checkpoints.close()
        state, _ = compiled.step(state, bag)
    again = made(config, optax.adam(1e-2))
    resumed, _ = Checkpoints(tmp_path).restore(again.init(jax.random.key(1), bag))
    for _ in range(2):
        resumed, _ = again.step(resumed, bag)
    plain = lambda s: jax.device_get((s.params, s.opt))
    chex.assert_trees_all_equal(plain(resumed), plain(state))


def test_no_next_batch_is_an_error(views):
    config = method(ahead=True)
    compiled, bag = made(config), batch(config, views, resident=False)
    with pytest.raises(ValueError, match="which one comes next"):
        compiled.step(compiled.init(jax.random.key(0), bag), bag)


def test_the_next_verdict_is_begun_before_this_one(views):
    """And is the same as without."""
    config = method()
    compiled, bag = made(config), batch(config, views, resident=False)
    params = compiled.init(jax.random.key(0), bag).params
    predict = lambda bag: compiled.predict(params, bag, jax.random.key(1))
    alone, told = predict(bag), after_itself(bag)
    for _ in range(3):
        chex.assert_trees_all_equal(predict(told), alone)


def test_patch_all_reads_every_cell_once(views):
    """Its attention is on all tiles with tissue, and padding has none."""
    config = PatchAll(trunk=method().trunk, mpp=2.0, tile_px=16, width=4, attention=3)
    bag = after_itself(batch(config, views, resident=False, cache_gib=0.0))
    compiled = made(config, optax.adam(1e-2))
    state = compiled.init(jax.random.key(0), bag)
    for view in views:
        view.n_read = 0
    said = compiled.predict(state.params, bag, jax.random.key(0))
    tiles = bag.mask.sum((1, 2))
    np.testing.assert_array_equal(said.counts["tiles"], tiles)
    np.testing.assert_allclose(said.attention[:3].sum(1), 1, rtol=1e-5)
    for attention, n in zip(said.attention, tiles, strict=True):
        assert not np.asarray(attention)[n:].any()
    # Once for this verdict, once for the next one, which was begun.
    assert [view.n_read for view in views] == [2 * n for n in tiles[:3]]
    losses = []
    for _ in range(20):
        state, metrics = compiled.step(state, bag)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.98 * losses[0]


def test_patch_all_staged_is_pure(views):
    """Loss, update and verdict, however tiles are read."""
    states, said = [], []
    for resident in (True, False):
        config = PatchAll(
            trunk=method().trunk, mpp=1.0, tile_px=16, width=4, attention=3,
            ahead=False, augment=False, resident=resident,
        )  # fmt: skip
        compiled, bag = made(config), batch(config, views, resident)
        state = compiled.init(jax.random.key(0), bag)
        state, metrics = compiled.step(state, bag)
        states.append(jax.device_get((state.params, metrics)))
        said.append(compiled.predict(state.params, bag, jax.random.key(1)))
    chex.assert_trees_all_close(*states, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(said[0].logits, said[1].logits, rtol=1e-5, atol=1e-5)
