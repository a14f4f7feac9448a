"""Meshes and sharding: what lies where, and that eight devices say what one says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.training.compile import compile_encoder, replicate, split
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Bag

ONE, EIGHT = make_mesh(jax.devices()[:1]), make_mesh()


def bag(slides) -> Bag:
    x = np.arange(slides * 6, dtype=np.float16).reshape(slides, 3, 2)
    ones = np.ones(slides)
    return Bag(x, x[..., 0] >= 0, ones.astype(np.int32), ones.astype(np.float32))


def test_a_batch_is_split_by_slide_and_parameters_lie_whole_on_every_device():
    assert EIGHT.axis_names == ("data",)
    for array, whole in zip(split(bag(16), EIGHT), bag(16), strict=True):
        np.testing.assert_array_equal(array, whole)
        assert len(array.addressable_shards) == 8
        for shard in array.addressable_shards:
            assert shard.data.shape == (2, *whole.shape[1:])
            np.testing.assert_array_equal(shard.data, whole[shard.index])
    laid = replicate({"w": np.arange(3.0)}, EIGHT)["w"]
    for shard in laid.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(3.0))
    with pytest.raises(ValueError, match="batch of 12 does not divide among 8 devices"):
        split(bag(12), EIGHT)
    assert split(bag(12), ONE).x.shape == (12, 3, 2)


def test_an_encoder_on_eight_devices_is_the_one_on_one():
    """Its weights whole on each, or divided among them."""

    def apply(params, pixels):
        return jnp.einsum("bhwc,cd->bd", pixels / 255, params)

    params = np.random.default_rng(0).normal(size=(3, 1 << 15)).astype(np.float32)
    pixels = np.random.default_rng(1).integers(0, 256, (16, 2, 2, 3), np.uint8)

    def encoded(mesh, spread=False):
        laid = replicate(params, mesh, spread)
        assert laid.is_fully_replicated == (not spread)
        return compile_encoder(apply, mesh)(laid, split(pixels, mesh))

    for features in (encoded(EIGHT), encoded(EIGHT, spread=True)):
        assert {shard.data.shape for shard in features.addressable_shards} == {
            (2, 1 << 15)
        }
        np.testing.assert_allclose(features, encoded(ONE), rtol=1e-5, atol=1e-6)
