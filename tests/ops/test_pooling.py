"""Pooling: chunked = dense, padding is invisible, memory does not grow with the bag."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsi_jax.ops.attention_weights import Normaliser, normalise
from wsi_jax.ops.pooling import attention_pool, max_pool

EACH = pytest.mark.parametrize("normaliser", Normaliser, ids=lambda n: n.name)


def setup(b=2, n=37, f=5, d=4, k=3, dtype=np.float64):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(dtype))
    mask = rng.random((b, n)) < 0.7
    mask[:, 0] = True
    params = {"h": normal(f, d), "logits": normal(f, k)}
    return params, normal(b, n, f), jnp.asarray(mask)


def embed_with(params):
    return lambda x, key: (jnp.tanh(x @ params["h"]), x @ params["logits"])


def dense(normaliser=Normaliser.softmax, power=2.0):
    def pool(params, x, mask):
        h, logits = embed_with(params)(x, None)
        w = normalise(jnp.swapaxes(logits, 1, 2), mask[:, None], normaliser, power)
        return jnp.einsum("bkn,bnd->bkd", w, h)

    return pool


def chunked(chunk, **normaliser):
    def pool(params, x, mask):
        return attention_pool(
            embed_with(params), x, mask, chunk=chunk, **normaliser
        ).pooled

    return pool


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunk", [5, 64])
@EACH
def test_chunked_attention_is_dense_attention_in_value_and_gradient(normaliser, chunk):
    """Logits come raw, in the order of the tiles."""
    params, x, mask = setup()
    options = {"normaliser": normaliser, "power": 3.0}

    def by_chunks(params, x):
        pooled = attention_pool(embed_with(params), x, mask, chunk=chunk, **options)
        logits = jnp.where(mask[:, None], pooled.logits, 0)
        return (pooled.pooled**2).sum(), logits

    def at_once(params, x):
        logits = jnp.swapaxes(x @ params["logits"], 1, 2)
        pooled = dense(**options)(params, x, mask)
        return (pooled**2).sum(), jnp.where(mask[:, None], logits, 0)

    grad = lambda f: jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(params, x)
    chex.assert_trees_all_close(grad(by_chunks), grad(at_once), rtol=1e-12, atol=1e-14)


@EACH
def test_what_stands_behind_the_mask_has_no_effect(normaliser):
    """Great logits do not overflow; a slide without tiles pools to zero."""
    params, x, mask = setup(dtype=np.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def energy(params, x, mask):
        pooled = chunked(5, normaliser=normaliser)(params, x, mask)
        return (pooled**2).sum(), pooled

    for junk in (1e30, np.inf, np.nan):
        dirty = jnp.where(mask[..., None], x, junk)
        result = energy(params, dirty, mask)
        chex.assert_trees_all_equal(result, energy(params, x, mask))
    (_, pooled), grads = energy(params, x, mask.at[1].set(False))
    assert not pooled[1].any()
    chex.assert_tree_all_finite((pooled, grads))
    great = params | {"logits": 1e4 * params["logits"]}
    chex.assert_tree_all_finite(energy(great, x, mask))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunk", [5, 64])
def test_chunked_maximum_is_the_maximum_in_value_and_gradient(chunk):
    params, x, mask = setup()
    embed = lambda params: lambda x, key: jnp.tanh(x @ params["h"])

    def slow(params):
        h = jnp.where(mask[..., None], embed(params)(x, None), -jnp.inf)
        return h.max(1)

    fast = lambda params: max_pool(embed(params), x, mask, chunk=chunk)
    energy = lambda pool: jax.jit(jax.value_and_grad(lambda p: (pool(p) ** 2).sum()))(
        params
    )
    chex.assert_trees_all_close(energy(lambda p: fast(p).pooled), energy(slow))
    h = embed(params)(x, None)
    won = jnp.take_along_axis(h, fast(params).winner[:, None], 1)[:, 0]
    chex.assert_trees_all_close(won, slow(params))


def test_both_passes_of_sparsemax_drop_out_alike(key):
    """And like one that embeds a chunk at a time with the keys that it would have."""
    params, x, mask = setup(n=12, dtype=np.float32)

    def embed(x, keys):
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, x.shape[1:]))(keys)
        return embed_with(params)(jnp.where(keep, x, 0), None)

    normaliser = Normaliser.sparsemax
    pool = lambda keys: attention_pool(
        embed, x, mask, chunk=5, keys=keys, normaliser=normaliser
    )
    own = jax.random.split(key, len(x))
    result = jax.jit(pool)(own)
    fold = jax.vmap(jax.random.fold_in, (0, None))
    keys = [fold(own, i) for i in range(3)]
    parts = [embed(x[:, 5 * i : 5 * i + 5], k) for i, k in enumerate(keys)]
    h, logits = (jnp.concatenate(a, 1) for a in zip(*parts, strict=True))
    w = normalise(jnp.swapaxes(logits, 1, 2), mask[:, None], normaliser)
    pooled = jnp.einsum("bkn,bnd->bkd", w, h)
    chex.assert_trees_all_close(result.pooled, pooled, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("normaliser", [Normaliser.softmax, Normaliser.sparsemax])
def test_memory_does_not_grow_with_the_bag(normaliser):
    def temp_bytes(n, chunk):
        """Bytes of the parameters' gradient, beside the bag itself."""
        shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
        params = {"h": shape(64, 256), "logits": shape(64, 1)}
        mask = jax.ShapeDtypeStruct((1, n), bool)

        def energy(params, x, mask):
            return (chunked(chunk, normaliser=normaliser)(params, x, mask) ** 2).sum()

        lowered = jax.jit(jax.grad(energy)).lower(params, shape(1, n, 64), mask)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    features = 200_000 * 256 * 4
    assert temp_bytes(200_000, 200_000) > features
    assert temp_bytes(200_000, 1024) < features / 20
