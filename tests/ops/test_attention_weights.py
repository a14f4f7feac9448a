"""Normalisers: weights sum to 1, masked tiles weigh nothing, gradients are exact."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.ops.attention_weights import (
    Normaliser,
    log_weights,
    normalise,
    softmax_with_prior,
    squared_average,
)

EACH = pytest.mark.parametrize("normaliser", Normaliser, ids=lambda n: n.name)
CASES = pytest.mark.parametrize(
    "case", ["sigmoid", "top_bottom", "equal", "single", "with_zeros", "signed"]
)


@pytest.fixture
def load(shared):
    def arrays(case):
        path = shared / "fixtures" / "sampling" / "square_mean_pooling.npz"
        with np.load(path) as file:
            names = [name for name in file if name.startswith(f"{case}_")]
            return {name[len(case) + 1 :]: jnp.asarray(file[name]) for name in names}

    return arrays


def pooled(weigh, of, x, g):
    """Weights of scores, what they pool, and gradients of its product with g."""

    @jax.jit
    def run(of, x):
        h = lambda of, x: weigh(of) @ x
        return weigh(of), h(of, x), *jax.grad(lambda *a: h(*a) @ g, (0, 1))(of, x)

    return run(of, x)


@CASES
@pytest.mark.usefixtures("x64")
def test_squared_average_of_scores_is_the_fixture(load, case):
    a = load(case)
    mask = jnp.ones(a["s"].shape, bool)
    result = pooled(lambda s: squared_average(s, mask), a["s"], a["X"], a["g"])
    right = a["w"], a["h"], a["d_s"], a["d_X"]
    chex.assert_trees_all_close(result, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", ["sigmoid", "top_bottom"])
@pytest.mark.usefixtures("x64")
def test_squared_average_and_softmax_of_logits_are_the_fixture(load, case):
    a = load(case)
    mask = jnp.ones(a["u"].shape, bool)
    weigh = lambda normaliser: lambda u: normalise(u, mask, normaliser)
    w, h, d_u, d_x = pooled(weigh(Normaliser.squared_average), a["u"], a["X"], a["g"])
    right = a["w"], a["h"], a["d_u"], a["d_X"]
    chex.assert_trees_all_close((w, h, d_u, d_x), right, rtol=1e-6, atol=1e-9)
    # The fixture's softmax is that of the scores, bounded as they are.
    bounded = weigh(Normaliser.bounded_softmax)(a["u"])
    chex.assert_trees_all_close(bounded, a["softmax_w"], rtol=1e-6)
    result = pooled(weigh(Normaliser.softmax), a["s"], a["X"], a["g"])
    right = a["softmax_w"], a["softmax_h"], a["softmax_d_s"]
    chex.assert_trees_all_close(result[:3], right, rtol=1e-6, atol=1e-9)


def values_and_gradient(logits, mask, normaliser):
    """Weights, and the gradient of their product with something."""
    g = jnp.cos(jnp.arange(logits.shape[-1], dtype=jnp.float32))[None]
    grad = jax.grad(lambda u: (normalise(u, mask, normaliser) * g).sum())
    return normalise(logits, mask, normaliser), grad(logits)


@EACH
def test_weights_are_a_distribution_over_the_unmasked(normaliser):
    """At any scale: where sigmoids underflow, where they are 1, among ties."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.integers(-3, 7, (200, 1))
    logits = rng.normal(size=(200, 33)) * scale + rng.choice([-1, 0, 1], (200, 1)) * 50
    logits[::5] = np.round(logits[::5])
    mask = rng.random((200, 33)) < rng.random((200, 1))
    mask[0] = False
    dirty = np.where(mask, logits, rng.choice([np.nan, np.inf, -np.inf], mask.shape))
    run = jax.jit(lambda u: values_and_gradient(u, jnp.asarray(mask), normaliser))
    w, gradient = run(jnp.float32(dirty))
    chex.assert_tree_all_finite((w, gradient))
    assert (w >= 0).all()
    np.testing.assert_allclose(w.sum(-1), mask.any(-1), rtol=1e-5)
    assert (w[~mask] == 0).all()
    assert (gradient[~mask] == 0).all()
    chex.assert_trees_all_equal(run(jnp.float32(logits)), (w, gradient))


@EACH
def test_underflowing_and_saturating_scores_keep_their_weights(normaliser):
    """Weights are those of float64, whatever a sigmoid is in float32."""
    mask = jnp.ones((2, 3), bool)
    logits = np.array([[-200.0, -201.0, -203.0], [200.0, 201.0, 203.0]])
    result = normalise(jnp.float32(logits), mask, normaliser)
    with jax.enable_x64(True):
        exact = normalise(jnp.asarray(logits), mask, normaliser)
    chex.assert_trees_all_close(result, np.float32(exact), rtol=1e-4, atol=1e-7)
    if normaliser is Normaliser.squared_average:
        assert result[0, 0] > 0.8


def test_scores_of_nothing_weigh_nothing():
    scores = jnp.array([[0.0, 0.0, jnp.nan], [1e-30, 0.0, jnp.inf]])
    mask = jnp.array([[True, True, False]] * 2)
    weigh = lambda s: squared_average(s, mask)
    np.testing.assert_array_equal(weigh(scores), [[0, 0, 0], [1, 0, 0]])
    gradient = jax.grad(lambda s: (weigh(s) * jnp.arange(3.0)[None]).sum())(scores)
    assert not gradient.any()


@EACH
@pytest.mark.usefixtures("x64")
def test_gradient_is_that_of_finite_differences(normaliser):
    rng = np.random.default_rng(1)
    mask = jnp.asarray(rng.random((6, 9)) < 0.8)
    u, towards, g = (jnp.asarray(rng.normal(size=(6, 9))) for _ in range(3))

    @jax.jit
    def slopes(u):
        value = lambda t: (normalise(u + t * towards, mask, normaliser) * g).sum(-1)
        by_hand = (value(1e-6) - value(-1e-6)) / 2e-6
        backwards = jax.grad(lambda u: (normalise(u, mask, normaliser) * g).sum())(u)
        return by_hand, jax.jvp(value, (0.0,), (1.0,))[1], (backwards * towards).sum(-1)

    by_hand, slope, back = slopes(u)
    chex.assert_trees_all_close(slope, by_hand, rtol=1e-7, atol=1e-9)
    chex.assert_trees_all_close(back, slope, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_sparsemax_is_the_nearest_point_of_the_simplex():
    """w is it if and only if u - w is tau where w > 0, and no more elsewhere."""
    rng = np.random.default_rng(2)
    u = jnp.asarray(rng.normal(size=(50, 40)) * 10.0 ** rng.integers(-3, 3, (50, 1)))
    weigh = jax.jit(
        lambda u: normalise(u, jnp.ones((1, 40), bool), Normaliser.sparsemax)
    )
    u, w = np.asarray(u), np.asarray(weigh(u))
    left = u - w
    tau = left.max(-1, keepdims=True)
    np.testing.assert_allclose(w.sum(-1), 1, rtol=1e-12)
    gap = np.where(w > 0, tau - left, 0)
    np.testing.assert_allclose(gap, 0, atol=1e-12)
    assert ((w > 0).sum(-1) == 1).any()
    assert ((w > 0).sum(-1) == 40).any()


def test_sparsemax_of_many_tiles_sums_to_one():
    """Weights near float32's resolution of the logits, a hundred thousand of them."""
    u = np.float32(np.random.default_rng(3).normal(size=(1, 100_000)) * 1e-6)
    u[0, 0] = 0.5
    w = normalise(jnp.asarray(u), jnp.ones(u.shape, bool), Normaliser.sparsemax)
    np.testing.assert_allclose(np.float64(w).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(w[0, 0], 0.5, rtol=1e-3)


def test_log_weights_are_of_each_tile_by_itself():
    half = jnp.array([1.0, -2.0], jnp.bfloat16)
    for normaliser in set(Normaliser) - {Normaliser.sparsemax}:
        assert log_weights(half, normaliser).dtype == jnp.float32
    for power in (0.5, 4.0):
        squared = log_weights(half, Normaliser.squared_average, power)
        right = power * jax.nn.log_sigmoid(jnp.float32(half))
        chex.assert_trees_all_close(squared, right, rtol=1e-5)
    with pytest.raises(ValueError, match="sparsemax has no log weights"):
        log_weights(half, Normaliser.sparsemax)


def test_a_posterior_is_the_softmax_of_log_prior_and_logits():
    """In value and gradient; what weighs nothing before weighs nothing after."""
    rng = np.random.default_rng(0)
    prior, logits = rng.random((3, 7)), rng.normal(size=(3, 7))
    prior[0, 2:4] = prior[2] = 0
    there = prior > 0
    logits = np.where(there, logits, np.nan)
    prior, logits = jnp.float32(prior), jnp.float32(logits)

    def plain(prior, logits):
        w = jnp.where(there, prior * jnp.exp(jnp.where(there, logits, 0)), 0)
        total = w.sum(1, keepdims=True)
        return w / jnp.where(total > 0, total, 1)

    def with_gradients(weigh):
        first = lambda *x: weigh(*x)[:, 0].sum()
        run = jax.jit(lambda *x: (weigh(*x), *jax.grad(first, (0, 1))(*x)))
        return run(prior, logits)

    far = jnp.float32([1e-20, 0.7, 0.3]), jnp.float32([0, -80, -75])
    grads = jax.grad(lambda *x: softmax_with_prior(*x)[1], (0, 1))(*far)
    assert all(np.isfinite(grad).all() for grad in grads)
    result, wanted = with_gradients(softmax_with_prior), with_gradients(plain)
    close = {"rtol": 1e-5, "atol": 1e-7}
    np.testing.assert_allclose(result[0], wanted[0], **close)
    for mine, theirs in zip(result[1:], wanted[1:], strict=True):
        np.testing.assert_allclose(mine[there], np.asarray(theirs)[there], **close)
        assert not np.asarray(mine)[~there].any()
