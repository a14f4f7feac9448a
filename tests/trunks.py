"""Narrow trunks with nothing at 0 or 1, images, and what float64 calls the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from wsi_jax.nets.convnext import ConvNeXt
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.resnet import ResNet

resnet = functools.partial(ResNet, norm=NormKind.frozen, width=4)
TINY = functools.partial(resnet, blocks=(1, 1), bottleneck=False)
NECK = functools.partial(resnet, blocks=(1, 1), bottleneck=True, norm=NormKind.layer)
NEXT = functools.partial(ConvNeXt, blocks=(1, 1), width=4, scale=0.5)


def trunk_shapes(make):
    """A narrow trunk as a net, and the shapes of its parameters."""
    dtype = jnp.zeros(()).dtype  # float64 where that is enabled
    net = make(mean=(0.5,) * 3, std=(0.2,) * 3, dtype=dtype.name)
    x = jnp.zeros((1, 32, 32, 3))
    return net.apply, jax.eval_shape(net.init, jax.random.key(0), x)


def trunk(make):
    """A narrow trunk with nothing at 0 or 1, as a net and its parameters."""
    net, shapes = trunk_shapes(make)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("scale", "var", "gamma"):
            values = rng.uniform(0.8, 1.2, leaf.shape)
        else:
            values = rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        return jnp.asarray(values, jnp.zeros(()).dtype)

    return net, jax.tree_util.tree_map_with_path(draw, shapes)


def image(*size, b=1):
    return jnp.asarray(np.random.default_rng(1).uniform(0, 255, (b, *size, 3)))


def assert_same(ours, theirs):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * (np.abs(b).max() + 1e-9))
