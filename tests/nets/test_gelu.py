import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from wsi_jax.nets.gelu import gelu


def test_is_x_times_the_share_below_it(x64):
    x = np.linspace(-12, 12, 1001)
    np.testing.assert_allclose(gelu(jnp.array(x)), x * ndtr(x), rtol=1e-13, atol=1e-14)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    slope = jax.vmap(jax.grad(gelu))(jnp.array(x))
    np.testing.assert_allclose(slope, ndtr(x) + x * density, rtol=1e-12, atol=1e-14)


def test_keeps_bfloat16_and_its_digits():
    x = jnp.linspace(-3, 3, 301).astype(jnp.bfloat16)
    y, wide = gelu(x), np.asarray(x, np.float64)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), wide * ndtr(wide), rtol=2**-8)
