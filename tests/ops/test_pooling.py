"""Pooling: chunked = dense, padding is invisible, memory does not grow with the bag."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.ops import pooling


def setup(b=2, n=37, f=5, d=4, k=3, dtype=np.float64):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(dtype))
    mask = rng.random((b, n)) < 0.7
    mask[:, 0] = True
    params = {"h": normal(f, d), "logits": normal(f, k)}
    return params, normal(b, n, f), jnp.asarray(mask)


def embed_with(params):
    return lambda x, key: (jnp.tanh(x @ params["h"]), x @ params["logits"])


def dense(params, x, mask):
    h, logits = embed_with(params)(x, None)
    attention = pooling.masked_softmax(jnp.swapaxes(logits, 1, 2), mask[:, None])
    return jnp.einsum("bkn,bnd->bkd", attention, h)


def chunked(chunk):
    def pool(params, x, mask):
        return pooling.attend(embed_with(params), x, mask, chunk=chunk).pooled

    return pool


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunk", [5, 37, 64])
def test_chunked_attention_is_dense_attention_in_value_and_gradient(chunk):
    params, x, mask = setup()
    energy = lambda pool: jax.jit(
        jax.value_and_grad(lambda params, x: (pool(params, x, mask) ** 2).sum(), (0, 1))
    )
    chex.assert_trees_all_close(
        energy(chunked(chunk))(params, x), energy(dense)(params, x), rtol=1e-12
    )


@pytest.mark.usefixtures("x64")
def test_chunked_logits_come_in_the_order_of_the_tiles():
    params, x, mask = setup()
    pool = lambda x: pooling.attend(embed_with(params), x, mask, chunk=5)
    seen = jax.jit(pool)(x)
    right = jnp.swapaxes(x @ params["logits"], 1, 2)
    there = mask[:, None]
    chex.assert_trees_all_close(
        jnp.where(there, seen.logits, 0), jnp.where(there, right, 0)
    )


def test_what_stands_behind_the_mask_has_no_effect():
    params, x, mask = setup(dtype=np.float32)
    energy = jax.jit(
        jax.value_and_grad(lambda p, x: (chunked(5)(p, x, mask) ** 2).sum())
    )
    for junk in (1e30, np.inf, np.nan):
        dirty = jnp.where(mask[..., None], x, junk)
        chex.assert_trees_all_equal(energy(params, dirty), energy(params, x))


def test_great_logits_do_not_overflow():
    params, x, mask = setup(dtype=np.float32)
    params["logits"] *= 1e4
    energy = jax.value_and_grad(lambda p: chunked(5)(p, x, mask).sum())
    pooled, grads = jax.jit(energy)(params)
    chex.assert_tree_all_finite((pooled, grads))


def test_a_slide_without_tiles_pools_to_zero_with_a_finite_gradient():
    params, x, mask = setup(dtype=np.float32)
    empty = mask.at[1].set(False)
    pool = lambda p: chunked(5)(p, x, empty)[1]
    energy = jax.value_and_grad(lambda p: jnp.abs(pool(p)).sum())
    value, grads = jax.jit(energy)(params)
    assert value == 0
    chex.assert_tree_all_finite(grads)
    assert pooling.masked_softmax(jnp.ones((1, 3)), jnp.zeros((1, 3), bool)).sum() == 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunk", [5, 64])
def test_chunked_maximum_is_the_maximum_in_value_and_gradient(chunk):
    params, x, mask = setup()
    embed = lambda params: lambda x, key: jnp.tanh(x @ params["h"])

    def slow(params):
        h = jnp.where(mask[..., None], embed(params)(x, None), -jnp.inf)
        return h.max(1)

    fast = lambda params: pooling.maximum(embed(params), x, mask, chunk=chunk)
    energy = lambda pool: jax.jit(jax.value_and_grad(lambda p: (pool(p) ** 2).sum()))(
        params
    )
    chex.assert_trees_all_close(energy(lambda p: fast(p).pooled), energy(slow))
    h = embed(params)(x, None)
    won = jnp.take_along_axis(h, fast(params).winner[:, None], 1)[:, 0]
    chex.assert_trees_all_close(won, slow(params))


@pytest.mark.usefixtures("optimised")
def test_memory_does_not_grow_with_the_bag():
    def temp_bytes(n, chunk):
        """Of the gradient with respect to the parameters, beside the bag itself."""
        shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
        params = {"h": shape(64, 256), "logits": shape(64, 1)}
        mask = jax.ShapeDtypeStruct((1, n), bool)

        def energy(params, x, mask):
            return (chunked(chunk)(params, x, mask) ** 2).sum()

        lowered = jax.jit(jax.grad(energy)).lower(params, shape(1, n, 64), mask)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    features = 200_000 * 256 * 4
    assert temp_bytes(200_000, 200_000) > features
    assert temp_bytes(200_000, 1024) < features / 20


def test_fewer_tiles_than_sampled_give_all_they_have():
    logits = jnp.array([[[3.0, 1.0, 2.0, 0.0]]])
    mask = jnp.array([[True, True, True, False]])
    verdicts = jnp.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.5], [jnp.nan, jnp.nan]])
    judge = lambda ids: verdicts[ids][:, :, None, :]
    loss = pooling.instance_loss(
        judge, logits, mask, jnp.array([0]), n_classes=1, sampled=8, subtyping=False
    )
    by_hand = -jax.nn.log_softmax(verdicts[:3]).mean()
    chex.assert_trees_all_close(loss, by_hand[None], rtol=1e-6)
