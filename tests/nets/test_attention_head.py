"""Attention heads and CLAM: bags by chunks are whole bags; CLAM's loss of tiles."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.nets.attention import AttentionHead
from wsi_jax.nets.clam import Clam, instance_loss
from wsi_jax.ops.attention_weights import Normaliser


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("branches", [1, 3])
def test_a_bag_by_chunks_is_the_whole_bag(branches):
    """In value and gradient; what stands behind the mask has no effect."""
    rng = np.random.default_rng(0)
    net = AttentionHead(3, branches, 6, 5, standardise=True, dtype=jnp.float64)
    x, mask = jnp.asarray(rng.normal(size=(2, 11, 4))), jnp.arange(11) < 9
    mask = jnp.stack([mask, mask[::-1]])
    params = jax.jit(net.init)(jax.random.key(0), x)
    params = jax.tree.map(lambda a: a + 0.3 * rng.normal(size=a.shape), params)
    clam = Clam(net, chunk=4, normaliser=Normaliser.squared_average)

    def by_chunks(params):
        logits, attention = clam.predict(params, jnp.where(mask[..., None], x, 9), mask)
        return (logits**2).sum(), (logits, attention)

    def whole(params):
        logits, attention = net.apply(params, x, mask, clam.normaliser)
        branch = logits.argmax(-1) if branches > 1 else jnp.zeros(2, int)
        return (logits**2).sum(), (logits, attention[jnp.arange(2), branch])

    grad = lambda f: jax.jit(jax.grad(f, has_aux=True))(params)
    chex.assert_trees_all_close(grad(by_chunks), grad(whole), rtol=1e-11, atol=1e-13)


def test_fewer_tiles_than_sampled_give_all_they_have():
    logits = jnp.array([[[3.0, 1.0, 2.0, 0.0]]])
    mask = jnp.array([[True, True, True, False]])
    tiles = jnp.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.5], [jnp.nan, jnp.nan]])
    loss = instance_loss(
        lambda index: tiles[index][:, :, None, :], logits, mask, jnp.array([0]),
        n_classes=1, sampled=8, subtyping=False,
    )  # fmt: skip
    by_hand = -jax.nn.log_softmax(tiles[:3]).mean()
    chex.assert_trees_all_close(loss, by_hand[None], rtol=1e-6)
