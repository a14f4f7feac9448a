"""HAFED: as the released code computes it, and blind to padding."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sasha

from wsi_jax.nets import hafed
from wsi_jax.nets.hafed import HAFED, Uniforms
from wsi_jax.ops.attention_weights import (
    Normaliser,
    diversity,
    mask_top_k,
    mean_attention,
    normalise,
)

ARCHIVES = pytest.mark.parametrize(
    "name", ["hafed_d32", "hafed_d32_tcga_m1x1_m2x1", "hafed_d384"]
)
close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@ARCHIVES
def test_a_prediction_is_the_fixture(shared, name):
    x = sasha.load(shared, name)
    net, params = sasha.hafed(x, "param")
    u, mask = x["x"][0], jnp.ones(x["x"].shape[1], bool)

    @jax.jit
    def run(params):
        rows, _ = net.apply(params, u, method="aggregate")
        scores, projected = net.apply(params, rows, method="row_logits")
        alone = net.apply(params, rows, mask, method="classify")
        by_rows = mean_attention(scores, mask) @ projected
        return net.apply(params, u, mask), rows, scores, alone, by_rows

    output, rows, scores, alone, by_rows = run(params)
    close(output.children, x["out/A_1"])
    close(rows, x["out/afeat_1"])
    close(rows[:3], x["out/get_hr_fa_first3"])
    close(scores.T, x["out/attn_raw"])
    for one in (output, alone):
        close(one.attention, x["out/A_2"])
        close(one.attention.mean(0), x["out/classify_bag_attention"][0])
        close(one.branch_logits, x["out/sub_logits"])
        close(one.logits, x["out/classify_slide_logits"][0])
    close(by_rows, x["out/slide_logits"][0])


@ARCHIVES
def test_losses_and_gradients_are_the_fixture(shared, name):
    x = sasha.load(shared, name)
    net, params = sasha.hafed(x, "param")
    u, mask = x["x"][0], jnp.ones(x["x"].shape[1], bool)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params):
        output = net.apply(params, u, mask)
        losses = hafed.hafed_losses(output, x["label"][0], mask)
        # The released code compares tiles of the second attention, not branches.
        columns = diversity(output.attention.T[: len(output.attention)])
        return sum(losses[:3]) + columns, losses

    (total, losses), grads = run(params)
    close(total, x["loss/total_official"])
    close(losses.slide, x["loss/slide_official"])
    close(losses.branches, x["loss/sub_official"])
    close(losses.children_alike, x["loss/diversity_block1_rows"])
    close(losses.tiles_alike, x["loss/diversity_block2_rows_CORRECTED"])
    if name == "hafed_d384":
        norms = [v for k, v in x.items() if k.startswith("gradnorm/")]
        # PyTorch sums 800,000 squares one after the other, in float32.
        np.testing.assert_allclose(*map(optax.tree.norm, (grads, norms)), rtol=1e-4)
        return
    chex.assert_trees_all_close(grads, sasha.hafed(x, "grad")[1], atol=1e-5)
    lr, decay = x["hp/lr"], x["hp/wd"]
    after = sasha.hafed(x, "param_after_1_adamw_step")[1]
    sasha.assert_stepped(sasha.stepped(params, grads, lr, decay), after, lr)


@ARCHIVES
def test_masking_of_the_best_is_the_fixture(shared, name):
    x = sasha.load(shared, name)
    net, params = sasha.hafed(x, "param")
    top = int(x["stkim/n_top1"]), int(x["stkim/n_top2"])
    net = net.clone(top=top, mask_rate=float(x["stkim/mask_drop"]))
    uniforms = Uniforms(x["stkim/u_block1"], x["stkim/u_block2"])
    u, mask = x["x"][0], jnp.ones(x["x"].shape[1], bool)
    output = jax.jit(net.apply)(params, u, mask, uniforms)
    close(output.attention, x["stkim/out_A_2"])
    close(output.branch_logits, x["stkim/out_sub_logits"])
    close(output.logits, x["stkim/out_slide_logits"][0])
    gone = (output.children == 0).sum(-1)
    assert (gone == x["stkim/zero_count_block1_per_patch"]).all()
    if "stkim/out_A_1" in x:
        close(output.children, x["stkim/out_A_1"])


def test_padding_is_invisible(key):
    """Even NaN, in value and gradient, and even where fewer tiles are than `top`."""
    net = HAFED(3, 8, branches=(2, 3), top=(2, 7), mask_rate=0.5)
    keys = jax.random.split(key, 3)
    u = jax.random.normal(keys[0], (5, 4, 8))
    params = jax.jit(net.init)(keys[1], u, jnp.ones(5, bool))
    uniforms = net.uniforms(keys[2], 9)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, u, mask, uniforms):
        output = net.apply(params, u, mask, uniforms)
        return sum(hafed.hafed_losses(output, jnp.int32(1), mask)), output.attention

    whole = run(
        params, u, jnp.ones(5, bool), uniforms._replace(children=uniforms[0][:5])
    )
    padded = jnp.concatenate([u, jnp.full((4, 4, 8), jnp.nan)])
    mask = jnp.arange(9) < 5
    (loss, attention), grads = run(params, padded, mask, uniforms)
    assert (attention[:, 5:] == 0).all()
    assert ((attention == 0).sum(-1) == 4 + 2).all()
    chex.assert_trees_all_close(((loss, attention[:, :5]), grads), whole, atol=1e-6)
    nothing = run(params, padded, jnp.zeros(9, bool), uniforms)
    chex.assert_tree_all_finite(nothing)


def test_only_the_best_are_dropped_and_as_many_as_their_share():
    scores = jnp.array([3.0, 9.0, jnp.inf, 7.0, 5.0, 1.0])
    mask = jnp.array([True, True, False, True, True, True])
    uniform = jnp.array([0.9, 0.2, 0.1])  # of 9, 7 and 5
    left = mask_top_k(scores, mask, uniform, 0.7)
    np.testing.assert_array_equal(left, [1, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(mask_top_k(scores, mask, uniform, 0.3), mask)
    none = jnp.zeros(6, bool)
    np.testing.assert_array_equal(mask_top_k(scores, none, uniform, 0.7), none)


def test_a_layer_begins_within_its_bound(key):
    init = jax.jit(HAFED(2, 25).init)
    params = init(key, jnp.zeros((2, 3, 25)), jnp.ones(2, bool))["params"]
    layers = [
        (params["over_tiles"]["value"], 25),
        (params["over_tiles"]["logits"], 128),
    ]
    layers.append(({k: params[f"branch_{k}"] for k in ("kernel", "bias")}, 25))
    for layer, fan_in in layers:
        for values in jax.tree.leaves(layer):
            assert abs(values).max() <= fan_in**-0.5
        assert layer["kernel"].std() > 0.5 * fan_in**-0.5


def test_every_normaliser_is_the_same_row_by_row(key):
    """And in training; sparsemax, which cannot be, is refused."""
    x, mask = 3 * jax.random.normal(key, (6, 4, 8)), jnp.arange(6) < 5
    of = lambda normaliser: HAFED(
        3, 8, (2, 3), top=(2, 3), mask_rate=0.5, normaliser=normaliser
    )
    params = jax.jit(of(Normaliser.softmax).init)(jax.random.key(1), x, mask)
    uniforms = of(Normaliser.softmax).uniforms(jax.random.key(2), 6)
    others = [one for one in Normaliser if one is not Normaliser.sparsemax]

    @jax.jit
    def run(params):
        results = []
        for net in map(of, others):
            rows, over = net.apply(params, x, method="aggregate")
            scores = jnp.swapaxes(net.bind(params).over_children(x), -1, -2)
            by_hand = normalise(scores, jnp.ones_like(scores, bool), net.normaliser)
            logits, values = net.apply(params, rows, method="row_logits")
            by_rows = mean_attention(logits, mask) @ values
            trained = net.apply(params, x, mask, uniforms).attention
            whole = by_hand, net.apply(params, x, mask).logits
            results.append(((over, by_rows), whole, trained))
        return results

    for result, expected, trained in run(params):
        chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-5)
        assert ((trained > 0).sum(-1) == 5 - 1).all()
    with pytest.raises(ValueError, match="sparsemax"):
        of(Normaliser.sparsemax).init(jax.random.key(1), x, mask)
