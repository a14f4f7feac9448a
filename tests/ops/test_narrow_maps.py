"""By blocks or by positions: the same features, and the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trunks import assert_same

from wsi_jax.ops.convolution import conv
from wsi_jax.ops.narrow_maps import block_of, cell_features


@pytest.mark.parametrize("block", [(1, 2), (2, 2), (2, 4)])
def test_blocks_change_nothing(x64, block):
    rng, side = np.random.default_rng(0), 4
    x = jnp.asarray(rng.normal(size=(2, 3 * side, 5 * side, 3)))
    mask = jnp.asarray(rng.random((2, 3, 5)) < 0.7)
    layers = [
        {
            "kernel": jnp.asarray(rng.normal(size=(3, 3, d, 4))),
            "bias": jnp.asarray(rng.normal(size=4)),
            "norm_scale": jnp.asarray(rng.uniform(0.8, 1.2, 4)),
            "norm_bias": jnp.asarray(rng.normal(size=4)),
        }
        for d in (3, 4)
    ]

    def value(layers, x, block):
        features = cell_features(layers, x, mask, side, block)
        weights = np.random.default_rng(1).normal(size=features.shape)
        return (features * weights).sum(), features

    of = lambda block: jax.jit(
        jax.grad(lambda *a: value(*a, block), (0, 1), has_aux=True)
    )(layers, x)
    assert_same(of(block), of((1, 1)))


def test_features_are_those_of_layers_by_hand(x64):
    rng, side = np.random.default_rng(0), 2
    x, mask = rng.normal(size=(1, 4, 6, 3)), np.array([[[1, 0, 1], [1, 1, 1]]], bool)
    layer = {
        "kernel": rng.normal(size=(3, 3, 3, 4)),
        "bias": rng.normal(size=4),
        "norm_scale": rng.normal(size=4),
        "norm_bias": rng.normal(size=4),
    }
    fine = mask.repeat(side, 1).repeat(side, 2)[..., None]
    y = np.array(conv(jnp.where(fine, x, 0), jnp.asarray(layer["kernel"]), 1, 1))
    y += layer["bias"]
    mean, var = y.mean(-1, keepdims=True), y.var(-1, keepdims=True)
    y = (y - mean) / np.sqrt(var + 1e-5) * layer["norm_scale"] + layer["norm_bias"]
    y = np.where(fine, np.maximum(y, 0), 0)
    cells = y.reshape(1, 2, 2, 3, 2, 4)
    right = np.concatenate([cells.mean((2, 4)), cells.max((2, 4))], -1)
    ours = cell_features(
        jax.tree.map(jnp.asarray, [layer]),
        jnp.asarray(x),
        jnp.asarray(mask),
        side,
        (1, 1),
    )
    np.testing.assert_allclose(ours, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("channels", "side", "block"),
    [
        (16, 16, (2, 4)),
        (32, 16, (2, 2)),
        (128, 16, (1, 1)),
        (16, 6, (2, 2)),
        (8, 7, (1, 1)),
    ],
)
def test_a_block_fills_the_lanes_and_divides_a_cell(channels, side, block):
    assert block_of(channels, side) == block
