"""What becomes of crops: a trunk that is held, and one that learns."""

import chex
import jax
import jax.numpy as jnp
import pytest

from wsi_jax.nets.crop_head import CropHead
from wsi_jax.nets.crops import CropReader
from wsi_jax.nets.encoder import ConvNeXtEncoder


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_trunk_that_does_not_learn_says_the_same_and_has_no_gradient(chunk):
    trunk = ConvNeXtEncoder(blocks=(1,), width=4, scale=1.0)
    crops = jax.random.randint(jax.random.key(0), (1, 2, 8, 8, 3), 0, 255, jnp.uint8)
    which = jnp.zeros((1, 2), jnp.int32)

    def found(learns):
        reader = CropReader(trunk, CropHead(2, width=3), False, chunk, learns)
        params = reader.init(jax.random.key(1))
        said = lambda params: (reader.embed(params, crops, which) ** 2).sum()
        return jax.jit(jax.value_and_grad(said))(params)

    (held, still), (free, moved) = found(False), found(True)
    assert held == free
    chex.assert_trees_all_close(still["head"], moved["head"], rtol=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(still["trunk"]))
    assert any(leaf.any() for leaf in jax.tree.leaves(moved["trunk"]))
