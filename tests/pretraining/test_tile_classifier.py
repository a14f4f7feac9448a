import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.pretraining.augment import Augment
from experiments.pretraining.tile_classifier import TileClassifier
from wsi_jax import config_fields
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.nets.norm import Norm, NormKind
from wsi_jax.training.compile import compile_method, split
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Bag, Task

TASK = Task(("smooth", "rough", "absent"))
CONFIG = TileClassifier(
    encoder=Encoder(stages=1, width=8), augment=Augment(crop=0.75), smoothing=0.0
)
ONE = make_mesh(jax.devices()[:1])


def tiles() -> Bag:
    """Eight tiles, smooth or rough; the last two only fill the batch."""
    rng = np.random.default_rng(0)
    label = (np.arange(8) % 2).astype(np.int32)
    rough = rng.integers(-60, 61, (8, 16, 16, 1)) * label[:, None, None, None]
    x = (rng.integers(100, 180, (8, 1, 1, 3)) + rough).astype(np.uint8)
    real = np.arange(8) < 6
    return Bag(x, real[:, None], label, real.astype(np.float32))


@pytest.fixture(scope="module")
def compiled():
    (stage,) = CONFIG.stages(TASK, optax.adam(1e-2))
    return compile_method(stage.method, ONE)


@pytest.fixture(scope="module")
def state(compiled):
    return compiled.init(jax.random.key(0), split(tiles(), ONE))


def step(compiled, state, bag):
    return compiled.step(jax.tree.map(jnp.copy, state), split(bag, ONE))


def test_tiles_that_fill_the_batch_change_nothing(compiled, state):
    bag = tiles()
    x = bag.x.copy()
    x[6:] = 255
    other = bag._replace(x=x, target=np.where(bag.weight > 0, bag.target, 2))
    (one, first), (two, again) = (step(compiled, state, b) for b in (bag, other))
    chex.assert_trees_all_close(one.params, two.params, rtol=1e-6, atol=1e-8)
    assert first["loss"] == pytest.approx(np.log(3), abs=1e-6)
    assert again["loss"] == first["loss"]


def test_the_step_decides_how_tiles_are_augmented(compiled, state):
    state, _ = step(compiled, state, tiles())
    (_, one), (_, again) = (step(compiled, state, tiles()) for _ in range(2))
    _, other = step(compiled, state._replace(step=state.step + 1), tiles())
    assert one["loss"] == again["loss"] != other["loss"]


def test_a_prediction_changes_no_tile(compiled, state):
    state, _ = step(compiled, state, tiles())
    bag = split(tiles(), ONE)
    one, two = (
        compiled.predict(state.params, bag, jax.random.key(i)) for i in range(2)
    )
    chex.assert_trees_all_equal(one, two)
    head, apply = state.params["fc"], jax.jit(CONFIG.encoder.make().apply)
    features = apply(state.params["encoder"], jnp.asarray(tiles().x))
    expected = features @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(one.logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(one.attention[:, 0], tiles().weight)
    np.testing.assert_array_equal(one.counts["tiles"], tiles().weight)
    assert (one.counts["flops"][:6] > 1e5).all()


def test_coarse_looks_and_fine_details_are_both_learnt():
    """One encoder learns both: half of the tiles have the coarse look of another."""
    rng, n = np.random.default_rng(0), 16
    label = (np.arange(n) // 2 % 2).astype(np.int32)
    other = label[:, None, None, None]
    detail = rng.integers(0, 2, (n, 64, 32, 1)) * 120 - 60
    detail = np.stack([detail, -detail], 3).reshape(n, 64, 64, 1) * other
    x = (120 + 40 * other + detail + np.zeros(3)).astype(np.uint8)
    bag = Bag(x, np.ones((n, 1), bool), label, np.ones(n, np.float32))
    config = dataclasses.replace(
        CONFIG, augment=Augment(crop=0.25, borrow=0.5, borrow_px=8), coarser=4
    )
    (stage,) = config.stages(TASK, optax.adam(1e-2))
    compiled = compile_method(stage.method, ONE)
    state = compiled.init(jax.random.key(0), split(bag, ONE))
    accuracies = []
    for _ in range(80):
        state, metrics = compiled.step(state, split(bag, ONE))
        accuracies.append([float(metrics[k]) for k in ("accuracy", "coarse_accuracy")])
    assert (np.mean(accuracies[-20:], 0) > 0.95).all()


def test_a_field_wider_than_the_tile_is_refused():
    with pytest.raises(ValueError, match=r"augment\.crop=1\.5"):
        config_fields.validate(TileClassifier(augment=Augment(crop=1.5)))
    with pytest.raises(ValueError, match=r"method\.coarser=0"):
        TileClassifier(coarser=0).validate()
    wide = dataclasses.replace(CONFIG, coarser=2)
    (stage,) = wide.stages(TASK, optax.identity())
    compiled, bag = compile_method(stage.method, ONE), split(tiles(), ONE)
    state = compiled.init(jax.random.key(0), bag)
    with pytest.raises(ValueError, match=r"coarser=2: .* 2 x 12 px .* a tile of 16"):
        compiled.step(state, bag)


def test_frozen_norms_without_weights_take_the_first_batch_for_their_statistics():
    """Each norm then whitens what reaches it."""
    encoder = dataclasses.replace(CONFIG.encoder, norm=NormKind.frozen)
    config = dataclasses.replace(CONFIG, encoder=encoder)
    config.validate()
    (stage,) = config.stages(TASK, optax.identity())
    params = stage.method.init(jax.random.key(0), jax.tree.map(jnp.asarray, tiles()))
    outputs = []

    def record(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if isinstance(context.module, Norm) and context.method_name == "after":
            outputs.append(np.asarray(y).reshape(-1, y.shape[-1]))
        return y

    with nn.intercept_methods(record):
        encoder.trunk().apply(params.params["encoder"], jnp.asarray(tiles().x))
    assert len(outputs) == 5
    for y in outputs:
        np.testing.assert_allclose(y.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(y.std(0), 1, atol=1e-3)
