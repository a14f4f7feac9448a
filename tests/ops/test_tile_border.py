"""Windows behind borders: with the tile, or apart from it, as one map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trunks import assert_same

from wsi_jax.ops import tile_border
from wsi_jax.ops.convolution import pad_or_cut, padded_conv
from wsi_jax.ops.tile_border import MAX, SUM, window_behind
from wsi_jax.ops.trunk_ops import window_max


def convolved(x, padding, size, stride):
    kernel = np.random.default_rng(2).normal(size=(size, size, x.shape[-1], 3))
    return padded_conv(x, jnp.asarray(kernel), stride, padding)


def maxima(x, padding, size, stride):
    return window_max(x, size, stride, padding)


@pytest.mark.parametrize(
    ("op", "reduction", "size", "stride", "history"),
    [
        (convolved, SUM, 3, 1, (2, 2)),
        (convolved, SUM, 5, 2, (3, 4)),
        (convolved, SUM, 3, 2, (0, 1)),  # columns alone
        (maxima, MAX, 3, 2, (1, 2)),
        (maxima, MAX, 4, 1, (3, 0)),  # strips
        (None, SUM, 1, 1, (2, 3)),  # a map that is late
    ],
)
def test_windows_of_borders_apart_are_those_of_one_map(
    x64, monkeypatch, op, reduction, size, stride, history
):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(2, *shape, 4)))
    above, left = history
    x = draw(8, 12)
    borders = [
        draw(above, 12) if above else None,
        draw(8 + above, left) if left else None,
    ]
    padding = [(above, 0), (left, 0)]
    if op is None:
        op, padding = pad_or_cut, [(above, -above), (left, -left)]
    else:
        op = functools.partial(op, size=size, stride=stride)

    def value(x, borders):
        y = window_behind(x, borders, (size, stride), padding, op, reduction)
        weights = np.random.default_rng(1).normal(size=y.shape)
        return (y * weights).sum(), y

    results = []
    for platforms in (("cpu",), ()):
        monkeypatch.setattr(tile_border, "IN_PARTS", platforms)
        both = jax.grad(lambda *args: value(*args), (0, 1), has_aux=True)
        results.append(jax.jit(both)(x, borders))
    assert_same(*results)
