"""Sampling behind masks, of few cells and of none; differentiable top-k."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.ops import sampling
from wsi_jax.ops.sampling import Estimator

ALL = pytest.mark.parametrize("estimator", Estimator, ids=lambda e: e.name)


def masked_problem(junk):
    """Twelve cells, of which five are valid, with `junk` for the others' logits."""
    rng = np.random.default_rng(0)
    mask = np.array([0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0], bool)
    z, f = rng.normal(size=12), rng.normal(size=(12, 4))
    return jnp.asarray(np.where(mask, z, junk)), jnp.asarray(mask), jnp.asarray(f)


@functools.partial(jax.jit, static_argnames=("n", "estimator"))
@functools.partial(jax.vmap, in_axes=(0, None, None, None, None, None))
@functools.partial(jax.value_and_grad, argnums=(1, 3), has_aux=True)
def pooled(key, z, mask, f, n, estimator):
    """Pooled features of a slide by many keys, with their gradients."""
    log_a = sampling.log_attention(z, mask)
    drawn = sampling.draw_cells(key, log_a, n, estimator)
    w = sampling.sample_weights(log_a, drawn, estimator)
    # What was read behind the mask must not matter.
    f = jnp.where(drawn.mask[:, None], f[drawn.index], 1e6)
    return (w @ f).sum(), (drawn, w)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [5, 20])
@ALL
def test_where_all_cells_can_be_drawn_the_estimate_is_exact(key, n, estimator):
    z, mask, f = masked_problem(np.nan)
    out = pooled(key[None], z, mask, f, n, estimator)
    (value, (drawn, _)), (d_z, d_f) = jax.tree.map(lambda x: np.asarray(x)[0], out)
    mask = np.asarray(mask)
    exact = lambda z, f: (jax.nn.softmax(z) @ f).sum()
    right = jax.jit(jax.value_and_grad(exact, (0, 1)))(z[mask], f[mask])
    chex.assert_trees_all_close((value, (d_z[mask], d_f[mask])), right, rtol=1e-12)
    assert (d_z[~mask] == 0).all()
    assert (d_f[~mask] == 0).all()
    assert drawn.exact
    assert sorted(drawn.index[drawn.mask]) == list(np.flatnonzero(mask))
    assert ((drawn.index >= 0) & (drawn.index < len(z))).all()
    if estimator is Estimator.full:
        assert (drawn.mask == mask).all()
    else:
        assert (drawn.mask == (np.arange(n) < mask.sum())).all()


@ALL
def test_masked_cells_are_never_drawn_and_have_no_effect(key, estimator):
    clean = None
    for junk in (0.0, np.nan, np.inf, -np.inf, 1e30):
        z, mask, f = masked_problem(junk)
        keys = jax.random.split(jax.random.clone(key), 500)
        out = pooled(keys, z, mask, f, 3, estimator)
        (_, (drawn, _)), (d_z, _) = out = jax.tree.map(np.asarray, out)
        chex.assert_tree_all_finite(out)
        assert np.asarray(mask)[drawn.index[drawn.mask]].all()
        assert (d_z[:, ~np.asarray(mask)] == 0).all()
        assert drawn.mask.sum(-1).min() == (5 if estimator is Estimator.full else 3)
        assert drawn.exact.all() == (estimator is Estimator.full)
        clean = clean or out
        chex.assert_trees_all_equal(out, clean)


@ALL
def test_a_slide_without_cells_pools_to_zero_without_a_gradient(key, estimator):
    f, none = jnp.ones((12, 4)), jnp.zeros(12, bool)
    for junk, mask in ((0.0, none), (jnp.nan, none), (-jnp.inf, ~none)):
        keys = jax.random.split(jax.random.clone(key), 500)
        out = pooled(keys, jnp.full(12, junk), mask, f, 3, estimator)
        (value, (drawn, w)), grads = jax.tree.map(np.asarray, out)
        assert not drawn.mask.any()
        assert drawn.index.max() < 12
        chex.assert_trees_all_equal(
            (value, w, grads), jax.tree.map(np.zeros_like, (value, w, grads))
        )


@pytest.mark.usefixtures("x64")
def test_perturbed_topk_is_the_fixture(shared):
    with np.load(shared / "fixtures" / "sampling" / "perturbed_topk.npz") as file:
        x = {name: jnp.asarray(values) for name, values in file.items()}

    @jax.jit
    def run(scores):
        topk = lambda s: sampling.perturbed_topk(s, x["noise"], 3, x["sigma"])
        indicators, pull = jax.vjp(topk, scores)
        return indicators, *pull(x["upstream"])

    indicators, grad = run(x["x"])
    right = x["indicators"], x["vjp_complete"]
    chex.assert_trees_all_close((indicators, grad), right, rtol=1e-12, atol=1e-12)
    # The diagonal that public code keeps is another gradient.
    away = np.linalg.norm(grad - x["vjp_diagonal_only"])
    assert away > 0.5 * np.linalg.norm(x["vjp_complete"])


def test_perturbed_topk_chooses_no_masked_cell_and_is_topk_without_noise(key):
    scores = jnp.array([0.3, -jnp.inf, 2.0, 1.0, -jnp.inf])
    noise = jax.random.normal(key, (50, 5))
    weight = np.arange(20, dtype=np.float32).reshape(4, 5)

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(scores, k, sigma):
        indicators = sampling.perturbed_topk(scores, noise, k, sigma)
        return (indicators * weight[:k]).sum(), indicators

    (_, soft), grad = jax.tree.map(np.asarray, run(scores, 4, 1.0))
    np.testing.assert_array_equal(soft, np.eye(6)[[0, 2, 3, 5], :5])
    np.testing.assert_array_equal(grad[[1, 4]], 0)
    (_, hard), grad = jax.tree.map(np.asarray, run(scores, 2, 0.0))
    np.testing.assert_array_equal(hard, np.eye(5)[[2, 3]])
    np.testing.assert_array_equal(grad, 0)
