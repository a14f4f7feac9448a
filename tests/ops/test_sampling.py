"""Sampling: the sampled estimator is the expectation, in value and gradient."""

import functools
import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.ops import sampling
from wsi_jax.ops.sampling import Estimator

FIXTURE_NAMES = {
    Estimator.with_replacement: "wr",
    Estimator.ordered: "ordered",
    Estimator.ht_norm: "ht_norm",
}
SAMPLED = pytest.mark.parametrize("estimator", FIXTURE_NAMES, ids=lambda e: e.name)
UNBIASED = pytest.mark.parametrize(
    "estimator", [Estimator.with_replacement, Estimator.ordered], ids=lambda e: e.name
)
DRAWS = 20_000


class Estimate(NamedTuple):
    """Pooled features, and gradients of their product with g."""

    phi: jax.Array
    d_z: jax.Array
    d_f: jax.Array


close = functools.partial(chex.assert_trees_all_close, rtol=1e-12, atol=1e-12)


@pytest.fixture
def load(shared):
    def arrays(name):
        with np.load(shared / "fixtures" / "sampling" / f"{name}.npz") as file:
            return {k: jnp.asarray(v) for k, v in file.items()}

    return arrays


def attention(z):
    return sampling.log_attention(z, jnp.isfinite(z))


def estimate(z, f, g, estimator, drawn_from):
    """Estimates with the cells that `drawn_from` gives for the attention."""

    def energy(z, f):
        log_a = attention(z)
        drawn = drawn_from(log_a)
        phi = sampling.sample_weights(log_a, drawn, estimator) @ f[drawn.index]
        return phi @ g, phi

    (d_z, d_f), phi = jax.grad(energy, (0, 1), has_aux=True)(z, f)
    return Estimate(phi, d_z, d_f)


@jax.jit
def expectation(z, f, g):
    def energy(z, f):
        phi = jax.nn.softmax(z) @ f
        return phi @ g, phi

    (d_z, d_f), phi = jax.grad(energy, (0, 1), has_aux=True)(z, f)
    return Estimate(phi, d_z, d_f)


@pytest.mark.usefixtures("x64")
def test_estimates_at_fixed_cells_are_the_fixture(load):
    x, cases = load("fixed_samples"), ("c0", "c1", "c2")
    per_case = lambda key: jnp.stack([x[f"{case}_{key}"] for case in cases])
    index = {name: per_case(f"{name}_idx") for name in FIXTURE_NAMES.values()}

    @jax.jit
    @jax.vmap
    def run(index, kappa):
        def one(estimator, index):
            at = lambda log_a: sampling.sample_of(log_a, index, kappa)
            return estimate(x["z"], x["F"], x["g"], estimator, at)

        return {name: one(e, index[name]) for e, name in FIXTURE_NAMES.items()}

    def right(name):
        d_f = np.zeros((3, *x["F"].shape))
        for case, at, d in zip(d_f, index[name], per_case(f"{name}_d_Fs"), strict=True):
            np.add.at(case, at, d)  # A cell drawn twice has two rows.
        return Estimate(per_case(f"{name}_Phi"), per_case(f"{name}_d_z"), d_f)

    close(run(index, per_case("kappa")), {name: right(name) for name in index})


@pytest.mark.usefixtures("x64")
def test_expectation_entropy_and_magnifications_are_the_fixture(load, key):
    x = load("expectation_full")

    @jax.jit
    def run(z):
        every = lambda log_a: sampling.draw_cells(key, log_a, 1, Estimator.full)
        mass = lambda sizes: sampling.attention_by_magnification(attention(z), sizes)
        return (
            attention(z),
            estimate(z, x["F"], x["g"], Estimator.full, every),
            jax.value_and_grad(lambda z: sampling.entropy(attention(z)))(z),
            # The second: grids of their own may differ in size.
            (mass((64, 64, 64)), mass((128, 64))),
        )

    log_a, full, (entropy, d_z), (even, uneven) = run(x["z"])
    close(log_a, x["log_a"])
    close(full, Estimate(x["Phi"], x["d_z"], x["d_F"]))
    close((-entropy, -d_z), (x["neg_entropy"], x["d_z_neg_entropy"]))
    assert (np.asarray(d_z)[~np.asarray(x["mask"])] == 0).all()
    right = x["magnification_marginal"]
    close((even, uneven), (right, jnp.array([right[:2].sum(), right[2]])))


@pytest.mark.usefixtures("x64")
def test_a_step_of_training_is_the_fixture(load, key):
    x, coordinates = load("loss_step"), ("z", "F", "W", "b")

    def step(estimator, name):
        def loss(z, f, w, b):
            log_a = attention(z)
            if estimator is Estimator.full:
                drawn = sampling.draw_cells(key, log_a, 1, estimator)
            else:
                drawn = sampling.sample_of(log_a, x[f"{name}_idx"], x["kappa"])
            phi = sampling.sample_weights(log_a, drawn, estimator) @ f
            ce = -jax.nn.log_softmax(phi @ w + b)[x["label"]]
            return ce - x["entropy_coef"] * sampling.entropy(log_a), ce

        f = x["F"] if estimator is Estimator.full else x["F"][x[f"{name}_idx"]]
        run = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)
        return run(x["z"], f, x["head_W"], x["head_b"])

    def right(name):
        grads = tuple(x[f"{name}_d_{coordinate}"] for coordinate in coordinates)
        return (x[f"{name}_loss"], x[f"{name}_ce"]), grads

    names = {**FIXTURE_NAMES, Estimator.full: "full"}
    steps = jax.jit(lambda: {name: step(e, name) for e, name in names.items()})()
    close(steps, {name: right(name) for name in names.values()})


@functools.partial(jax.jit, static_argnums=0)
def enumerated(estimator, index, old, z, f, g):
    """Estimates at logits z of each row of cells, drawn at the logits `old`."""

    def one(index):
        at = lambda _: sampling.sample_of(attention(old), index, -jnp.inf)
        return estimate(z, f, g, estimator, at)

    return jax.vmap(one)(index)


@pytest.mark.usefixtures("x64")
@UNBIASED
def test_the_mean_over_every_draw_is_the_expectation_of_the_fixture(load, estimator):
    """And so is the variance."""
    tiny, name = load("tiny_exact"), FIXTURE_NAMES[estimator]
    order = "wo" if estimator is Estimator.ordered else "wr"
    index, chance = tiny[f"{order}_seqs"], np.asarray(tiny[f"{order}_probs"])
    every = enumerated(estimator, index, *(tiny[name] for name in ("z", "z", "F", "g")))
    right = Estimate(tiny["Phi"], tiny["d_z"], tiny["d_F"])
    close(jax.tree.map(lambda x: jnp.tensordot(chance, x, 1), every), right)
    for part, key in (("phi", "Phi"), ("d_z", "d_z")):
        away = np.asarray(getattr(every, part)) - np.asarray(getattr(right, part))
        variance = chance @ (away**2).sum(-1)
        np.testing.assert_allclose(variance, tiny[f"{name}_trvar_{key}"], rtol=1e-12)


@pytest.mark.usefixtures("x64")
@UNBIASED
def test_draws_of_older_parameters_are_unbiased_too(estimator):
    """Three cells of six, in 120 orders without replacement and in 216 with it."""
    rng = np.random.default_rng(0)
    old, f, g = rng.normal(size=6), rng.normal(size=(6, 4)), rng.normal(size=4)
    z, a = old + rng.normal(size=6), np.exp(old) / np.exp(old).sum()
    if estimator is Estimator.ordered:
        index = np.array(list(itertools.permutations(range(6), 3)))
        left = 1 - np.cumsum(np.pad(a[index], [(0, 0), (1, 0)])[:, :-1], 1)
    else:
        index, left = np.array(list(itertools.product(range(6), repeat=3))), 1.0
    chance = (a[index] / left).prod(1)
    assert chance.sum() == pytest.approx(1, abs=1e-12)
    every = enumerated(estimator, *map(jnp.asarray, (index, old, z, f, g)))
    mean = jax.tree.map(lambda x: jnp.tensordot(chance, x, 1), every)
    close(mean, expectation(*map(jnp.asarray, (z, f, g))))


@pytest.mark.usefixtures("x64")
def test_what_was_drawn_is_constant():
    """Gradients are those of a draw that was fixed before."""
    rng = np.random.default_rng(0)
    z, f = jnp.asarray(rng.normal(size=6)), jnp.asarray(rng.normal(size=6))
    # As in a draw, kappa is the attention of a cell, with noise.
    draw = lambda log_a: sampling.sample_of(log_a, jnp.array([4, 0, 2]), log_a[3] - 0.3)
    fixed = draw(attention(z))

    def value(z, estimator, drawn_from):
        log_a = attention(z)
        drawn = drawn_from(log_a)
        return sampling.sample_weights(log_a, drawn, estimator) @ f[drawn.index]

    both = draw, lambda _: fixed
    gradients_of = jax.jit(
        lambda z: [[jax.grad(value)(z, e, by) for by in both] for e in FIXTURE_NAMES]
    )
    for gradients in gradients_of(z):
        np.testing.assert_allclose(*gradients, rtol=1e-12)
        assert abs(np.asarray(gradients[0])).max() > 1e-3


@pytest.mark.usefixtures("optimised")
@SAMPLED
def test_the_mean_over_many_draws_is_the_expectation(load, key, estimator):
    x = load("expectation_full")
    right = Estimate(x["Phi"], x["d_z"], x["d_F"])

    def one(key):
        drawn = sampling.draw_cells(key, attention(x["z"]), 10, estimator)
        at_drawn = estimate(x["z"], x["F"], x["g"], estimator, lambda _: drawn)
        # Horvitz and Thompson's estimate: unbiased if log_q is right.
        ht = jnp.exp(drawn.log_a - drawn.log_q) @ x["F"][drawn.index]
        return at_drawn._replace(d_f=None), ht

    estimates, ht = jax.jit(jax.vmap(one))(jax.random.split(key, DRAWS))
    away = lambda mean, right: jnp.linalg.norm(mean.mean(0) - right)
    bound = lambda all_of: 4 * jnp.sqrt(all_of.var(0).sum() / DRAWS)
    if estimator is Estimator.ht_norm:
        assert away(ht, right.phi) <= bound(ht)
        assert away(estimates.phi, right.phi) <= 0.01 * jnp.linalg.norm(right.phi)
        assert away(estimates.d_z, right.d_z) <= 0.1 * jnp.linalg.norm(right.d_z)
    else:
        assert away(estimates.phi, right.phi) <= bound(estimates.phi)
        assert away(estimates.d_z, right.d_z) <= bound(estimates.d_z)


@pytest.mark.usefixtures("optimised")
@UNBIASED
def test_cells_are_drawn_as_often_and_in_the_order_they_should(load, key, estimator):
    tiny = load("tiny_exact")
    name = "wr" if estimator is Estimator.with_replacement else "wo"
    one = lambda key: sampling.draw_cells(key, attention(tiny["z"]), 3, estimator).index
    index = jax.jit(jax.vmap(one))(jax.random.split(key, DRAWS))
    place = lambda index: np.asarray(index)[..., None] == np.arange(7)
    right = np.tensordot(tiny[f"{name}_probs"], place(tiny[f"{name}_seqs"]), 1)
    sigma = np.sqrt(right * (1 - right) / DRAWS)
    assert (abs(place(index).mean(0) - right) <= 5 * sigma).all()


def test_concentrated_attention_keeps_its_precision_in_float32():
    z = np.array([14.0, 0.5, 0.3, 0.0, -0.2, -0.4, -60.0])
    index = np.array([0, 1, 3, 4, 6])

    @jax.jit
    def all_of(z, kappa):
        log_a = attention(z)
        drawn = sampling.sample_of(log_a, jnp.asarray(index), kappa)
        w = [
            sampling.sample_weights(log_a, drawn, estimator)
            for estimator in FIXTURE_NAMES
        ]
        return drawn.left, drawn.log_q, *w

    def as_type(dtype):
        with jax.enable_x64(dtype == np.float64):
            out = all_of(jnp.asarray(z, dtype), jnp.asarray(-58, dtype))
            return jax.tree.map(np.asarray, out)

    single, double = as_type(np.float32), as_type(np.float64)
    chex.assert_type(single, np.float32)
    assert (single[0] > 0).all()
    chex.assert_trees_all_close(single, double, rtol=2e-5)


def test_logits_of_half_precision_become_float32():
    z, mask = jnp.arange(5, dtype=jnp.bfloat16), jnp.ones(5, bool)
    log_a = sampling.log_attention(z, mask)
    chex.assert_type(log_a, jnp.float32)
    chex.assert_trees_all_close(log_a, jax.nn.log_softmax(jnp.arange(5.0)), rtol=1e-6)
