"""Attention over an overview: what reaches it, and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.nets.overview_attention import OverviewAttention

CELL = 4


@pytest.fixture
def slides():
    """Overviews of two slides, from 60 to 180, and their cells with tissue."""
    rng = np.random.default_rng(0)
    overview = rng.integers(60, 180, (2, 5 * CELL, 6 * CELL, 3)).astype(np.uint8)
    return overview, rng.random((2, 5, 6)) < 0.6


def logits_of(net, overview, mask):
    """Logits of the cells [b y x], by weights that are drawn, the last ones too."""
    overview, mask = jnp.asarray(overview), jnp.asarray(mask)
    shape = jax.eval_shape(net.init, jax.random.key(0), overview, mask)
    leaves, tree = jax.tree.flatten(shape)
    rng = np.random.default_rng(1)
    params = jax.tree.unflatten(
        tree, [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    )
    return np.asarray(net.apply(params, overview, mask)).reshape(mask.shape)


@pytest.mark.parametrize("relative", [False, True])
def test_glass_and_padding_are_not_seen(slides, relative):
    overview, mask = slides
    net = OverviewAttention(CELL, (1,), 4, 1, relative)
    before = logits_of(net, overview, mask)
    tissue = mask.repeat(CELL, 1).repeat(CELL, 2)[..., None]
    junk = np.where(tissue, overview, 7).astype(np.uint8)
    wide = lambda a, k: np.pad(
        a, [(0, 0), (0, k), (0, 2 * k)] + [(0, 0)] * (a.ndim - 3)
    )
    after = logits_of(net, wide(junk, CELL), wide(mask, 1))[:, :5, :6]
    np.testing.assert_allclose(after[mask], before[mask], rtol=1e-4, atol=1e-4)
    assert np.ptp(before[mask]) > 0.1


def test_relative_colours_do_not_tell_the_stain(slides):
    """A slide lighter and of less contrast is the same slide, where that is asked."""
    overview, mask = slides
    overview = overview // 2 * 2
    pale = np.stack([overview[0], overview[1] // 2 + 90])
    logits = [
        logits_of(OverviewAttention(CELL, (1,), 4, 1, relative), one, mask)
        for relative in (True, False)
        for one in (overview, pale)
    ]
    np.testing.assert_allclose(logits[0][mask], logits[1][mask], rtol=1e-2, atol=1e-2)
    np.testing.assert_array_equal(logits[2][0], logits[3][0])
    assert np.abs(logits[2][1] - logits[3][1])[mask[1]].max() > 0.1
    even = np.zeros_like(overview)  # nothing in it differs from its own mean
    net = OverviewAttention(CELL, (1,), 4, 1, True)
    assert np.isfinite(logits_of(net, even, mask & [[[True]], [[False]]])).all()
