import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from experiments.pretraining import contrastive

nt_xent = jax.jit(contrastive.nt_xent, static_argnames="temperature")


def by_hand(views, mask, temperature):
    """Equation 1, one view against one view at a time."""
    each = [(i, v) for i in np.flatnonzero(mask) for v in range(2)]
    cosine = lambda p, q: p @ q / np.linalg.norm(p) / np.linalg.norm(q)
    losses, found = np.zeros((2, len(views)))
    for i, v in each:
        alike = {
            (j, w): np.exp(cosine(views[i, v], views[j, w]) / temperature)
            for j, w in each
            if (j, w) != (i, v)
        }
        losses[i] -= np.log(alike[i, 1 - v] / sum(alike.values())) / 2
        found[i] += (max(alike, key=alike.get) == (i, 1 - v)) / 2
    return losses, found


@pytest.fixture
def views():
    x = np.random.default_rng(0).normal(size=(5, 2, 4))
    x[:, 1] += x[:, 0]
    return x


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("present", [5, 3, 1])
def test_it_is_the_equation(views, present):
    mask = np.arange(5) < present
    losses, found = nt_xent(views, mask, temperature=0.5)
    expected = by_hand(views, mask, 0.5)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(found, expected[1])
    if present == 5:
        assert 0 < found.mean() < 1


@pytest.mark.usefixtures("x64")
def test_the_gradient_is_that_of_the_loss(views):
    mask = np.arange(5) < 4
    mean = lambda x: nt_xent(x, mask, temperature=0.2)[0].sum()
    check_grads(mean, (jnp.asarray(views),), 1, modes=["rev"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("junk", [np.nan, 9.0])
def test_what_is_no_tile_changes_neither_loss_nor_gradient(views, junk):
    mask = np.arange(5) < 4
    clean = np.float32(views)
    dirty = np.where(mask[:, None, None], clean, np.float32(junk))
    sum_ = lambda x: nt_xent(x, mask, temperature=0.1)[0].sum()
    (one, slope), (two, other) = map(jax.value_and_grad(sum_), (clean, dirty))
    assert one == two
    np.testing.assert_array_equal(slope, other)
    assert np.isfinite(other).all()
    assert not other[4].any()


def test_no_tile_at_all_is_no_loss(views):
    loss = lambda x: nt_xent(x, np.zeros(5, bool), temperature=0.1)[0].sum()
    value, slope = jax.value_and_grad(loss)(jnp.asarray(views, jnp.float32))
    assert value == 0
    assert not slope.any()
