"""A strided convolution of pixels is one of stride 1 on packed pixels."""

import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.ops.convolution import padded_conv
from wsi_jax.ops.pixel_packing import pack, packed_kernel, unpack


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_packed_pixels_are_squares_of_pixels(dtype):
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3)).astype(dtype)
    packed = pack(x, 2)
    assert packed.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(packed[1, 1, 2], x[1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(unpack(packed, 2), x)


@pytest.mark.parametrize(
    ("size", "stride", "before", "squares"), [(7, 2, 5, 3), (4, 4, 0, 0), (3, 2, 1, 1)]
)
def test_the_packed_kernel_is_the_strided_one(x64, size, stride, before, squares):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 8, 16, 3)), rng.normal(size=(size, size, 3, 5))
    padding = ((before, 0), (before, 0))
    right = padded_conv(jnp.asarray(x), jnp.asarray(kernel), stride, padding)
    packed = packed_kernel(
        jnp.asarray(kernel), stride, squares * stride - before, squares + 1
    )
    padding = ((squares, 0), (squares, 0))
    ours = padded_conv(jnp.asarray(pack(x, stride)), packed, 1, padding)
    np.testing.assert_allclose(ours, right, rtol=0, atol=1e-12)
