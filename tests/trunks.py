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
NEXT = functools.partial(ConvNeXt, blocks=(1, 2), width=4, scale=0.5)


def trunk(make):
    """A narrow trunk with nothing at 0 or 1, as a net and its parameters."""
    dtype = jnp.zeros(()).dtype  # float64 where that is enabled
    net = make(mean=(0.5,) * 3, std=(0.2,) * 3, dtype=dtype.name)
    params = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    lively = lambda a: jnp.asarray(
        a * rng.uniform(0.8, 1.2, a.shape) + rng.uniform(-0.1, 0.1, a.shape), dtype
    )
    return net.apply, jax.tree.map(lively, params)


def image(*size, b=1):
    return jnp.asarray(np.random.default_rng(1).uniform(0, 255, (b, *size, 3)))


def assert_same(ours, theirs):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * (np.abs(b).max() + 1e-9))
