import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from wsi_jax.ops.convolution import SMALL_MAP_PX, conv
from wsi_jax.training.flops import count_flops


def stock(x, kernel, stride, padding):
    """What the framework makes of it."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def with_gradients(convolve, *sizes):
    def value(x, kernel):
        y = convolve(x, kernel, *sizes)
        return (jnp.sin(y) * jnp.arange(y.size).reshape(y.shape)).sum(), y

    return jax.value_and_grad(value, (0, 1), has_aux=True)


def map_and_kernel(size, taps, d=3):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, *size, d)), rng.normal(size=(*taps, 1, d))


@pytest.mark.parametrize(
    ("size", "taps", "stride", "padding"),
    [
        ((5, 4), (7, 7), 1, 3),  # ConvNeXt's, wider than the map
        ((9, 6), (3, 2), 2, 1),
        ((8, 8), (4, 4), 2, 0),
    ],
)
def test_a_small_depthwise_convolution_is_one(x64, size, taps, stride, padding):
    x, kernel = map_and_kernel(size, taps)
    ours, theirs = (
        jax.jit(with_gradients(f, stride, padding))(x, kernel) for f in (conv, stock)
    )
    _, back = jax.vjp(lambda *a: conv(*a, stride, padding), x, kernel)
    kept = sum(leaf.size for leaf in jax.tree.leaves(back))
    assert kept == x.size + kernel.size  # no matrices
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)
    jax.tree.map(close, ours, theirs)


@pytest.mark.parametrize("side", [6, int(SMALL_MAP_PX**0.5) + 1])
def test_how_a_machine_convolves_is_not_counted(side):
    x, kernel = map_and_kernel((side, side), (7, 7))
    for make in (lambda f: lambda *a: f(*a, 1, 3), lambda f: with_gradients(f, 1, 3)):
        assert count_flops(make(conv), x, kernel) == count_flops(make(stock), x, kernel)


def test_in_bfloat16_a_kernels_gradient_loses_no_more_than_the_frameworks():
    x, kernel = (jnp.float32(a) for a in map_and_kernel((8, 8), (7, 7)))
    gradient = lambda f, *a: jax.grad(lambda x, k: (f(x, k, 1, 3) * x).sum(), 1)(*a)
    exact = gradient(stock, x, kernel)
    halves = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    ours, theirs = (
        jnp.linalg.norm(gradient(f, *halves).astype(jnp.float32) - exact)
        for f in (conv, stock)
    )
    assert ours < 1.2 * theirs
