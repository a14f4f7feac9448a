"""The step of anything with a differentiable loss: what a weight is worth."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsi_jax.training.supervised import supervised
from wsi_jax.types import Bag, Prediction


def linear(tx):
    """A logistic regression on the mean tile."""

    def init(key, bag):
        return {"kernel": jax.random.normal(key, (bag.x.shape[-1],))}

    def loss(params, bag, keys):
        tiles = bag.mask.sum(-1)
        mean = (bag.x * bag.mask[..., None]).sum(1) / jnp.maximum(tiles, 1)[:, None]
        noise = jax.vmap(jax.random.uniform)(keys)
        losses = optax.sigmoid_binary_cross_entropy(mean @ params["kernel"], bag.target)
        return losses, {"tiles": tiles.astype(jnp.float32), "noise": noise}

    def predict(params, bag, key):
        return Prediction(bag.x.mean(1) @ params["kernel"], None, {})

    return supervised(init, loss, predict, tx)


METHOD = linear(optax.sgd(1.0))
STEP = jax.jit(METHOD.step)


def filled(bag, slides):
    """The batch, filled up with slides of no tiles and no weight."""
    fill = lambda a: np.pad(a, [(0, slides - len(a))] + [(0, 0)] * (a.ndim - 1))
    return Bag(*map(fill, bag))


@pytest.fixture
def bag() -> Bag:
    rng = np.random.default_rng(0)
    mask = np.arange(5) < np.array([5, 3, 4, 2])[:, None]
    x = rng.normal(size=(4, 5, 3)).astype(np.float32)
    weight = np.array([1, 2, 0.5, 1], np.float32)
    return Bag(x, mask, np.array([0, 1, 1, 0], np.int32), weight)


def step(bag):
    """Parameters and metrics after one step; the noise is another in every batch."""
    state, metrics = STEP(METHOD.init(jax.random.key(0), bag), bag)
    return state.params, {n: v for n, v in metrics.items() if n != "noise"}


def test_slides_of_no_weight_have_no_influence(bag):
    """Not on the parameters, nor on any metric."""
    some = bag._replace(weight=np.array([1, 0, 1, 0], np.float32))
    other = some._replace(
        x=np.where((some.weight > 0)[:, None, None], some.x, 99),
        target=np.array([0, 0, 1, 1], np.int32),
    )
    left_out = Bag(*(a[::2] for a in some))
    chex.assert_trees_all_equal(step(some), step(other))
    chex.assert_trees_all_close(step(some), step(left_out), rtol=1e-6)
    start = METHOD.init(jax.random.key(0), bag).params
    params, metrics = step(bag._replace(weight=np.zeros(4, np.float32)))
    chex.assert_trees_all_equal(params, start)
    assert metrics["loss"] == metrics["grad_norm"] == 0


def test_the_loss_is_a_weighted_sum_over_the_number_of_slides(bag):
    """Other metrics are plain means."""
    alone = [Bag(*(a[i : i + 1] for a in bag)) for i in range(4)]
    parts = np.array([step(one)[1]["loss"] for one in alone])  # each times its weight
    chex.assert_trees_all_close(step(filled(bag, 8)), step(bag), rtol=1e-6)
    for batch in (bag, filled(bag, 8)):
        metrics = step(batch)[1]
        assert metrics["loss"] == pytest.approx(parts.mean(), rel=1e-6)
        assert metrics["tiles"] == np.mean([5, 3, 4, 2])
    start = METHOD.init(jax.random.key(0), bag).params["kernel"]
    moved = np.linalg.norm(step(bag)[0]["kernel"] - start)  # SGD at a rate of 1
    assert step(bag)[1]["grad_norm"] == pytest.approx(moved, rel=1e-5)
    heavy = step(bag._replace(weight=4 * bag.weight))[1]
    for name in ("loss", "grad_norm"):
        assert heavy[name] == pytest.approx(4 * float(step(bag)[1][name]), rel=1e-6)


def test_accumulated_batches_are_one_large_batch(bag):
    method = linear(optax.MultiSteps(optax.sgd(1.0), 4).gradient_transformation())
    state = method.init(jax.random.key(0), bag)
    learn = jax.jit(method.step)
    for i in range(4):
        state, _ = learn(state, Bag(*(a[i : i + 1] for a in bag)))
    chex.assert_trees_all_close(state.params, step(bag)[0], rtol=1e-6)


def test_each_step_has_its_own_key_which_the_state_alone_decides(bag):
    state = METHOD.init(jax.random.key(0), bag)
    noises, again = [], state
    for _ in range(2):
        state, metrics = STEP(state, bag)
        noises.append(float(metrics["noise"]))
    assert noises[0] != noises[1]
    assert int(state.step) == 2
    _, metrics = STEP(STEP(again, bag)[0], bag)
    assert float(metrics["noise"]) == noises[1]
