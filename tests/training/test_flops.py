import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from wsi_jax.training.compile import compile_method, compile_phase
from wsi_jax.training.flops import Counted, compiled_temp_bytes, count_flops, executed
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Method


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def conv(x, kernel, stride=1, pad=0, **options):
    dims = ("NHWC", "HWIO", "NHWC")
    strides, edges = (stride, stride), ((pad, pad), (pad, pad))
    return lax.conv_general_dilated(
        x, kernel, strides, edges, dimension_numbers=dims, **options
    )


def forward_and_backward(f):
    """Value and both gradients of f, with a cotangent that no shortcut can drop."""

    def both(x, w):
        y, back = jax.vjp(f, x, w)
        return y, back(jnp.sin(y))

    return both


@pytest.mark.parametrize(
    ("options", "kernel", "products"),
    [
        ({}, (3, 3, 4, 6), 6 * 6 * 9 * 4 * 6),
        # 8 rows padded by 1: the outer two outputs meet two of three taps each.
        ({"pad": 1}, (3, 3, 4, 6), (3 * 8 - 2) ** 2 * 4 * 6),
        ({"stride": 2, "pad": 1}, (3, 3, 4, 6), (3 * 4 - 1) ** 2 * 4 * 6),
        ({"feature_group_count": 4}, (3, 3, 1, 8), 6 * 6 * 9 * 8),
        ({"rhs_dilation": (2, 2)}, (3, 3, 4, 6), 4 * 4 * 9 * 4 * 6),
        # 8 rows with holes between make 15; of three taps two or one meet a row.
        ({"lhs_dilation": (2, 2)}, (3, 3, 4, 6), (7 * 2 + 6 * 1) ** 2 * 4 * 6),
    ],
)
def test_a_convolution_counts_products_of_real_elements_only(options, kernel, products):
    f = functools.partial(conv, **options)
    assert count_flops(f, shape(2, 8, 8, 4), shape(*kernel)) == 2 * 2 * products


@pytest.mark.parametrize(
    ("size", "stride", "pad", "groups"),
    [(1, 2, 0, 1), (3, 1, 1, 1), (3, 2, 1, 2), (7, 2, 3, 1)],
)
def test_each_gradient_of_a_convolution_costs_what_it_does(size, stride, pad, groups):
    f = functools.partial(conv, stride=stride, pad=pad, feature_group_count=groups)
    x, kernel = shape(2, 17, 20, 4), shape(size, size, 4 // groups, 6)
    once = count_flops(f, x, kernel)
    assert count_flops(forward_and_backward(f), x, kernel) == 3 * once


def test_loops_count_as_often_as_they_turn():
    x, w = shape(4, 4), shape(4, 4)
    once = 2 * 4**3

    def nested(x, w):
        def body(x, _):
            return lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x), None

        return lax.scan(body, x, length=5)[0]

    def recomputed(x, w):
        body = jax.checkpoint(lambda x, _: (jnp.tanh(x @ w), None))
        return lax.scan(body, x, length=5)[0]

    assert count_flops(nested, x, w) == 15 * once
    # Forward twice, then two matmuls back, in each turn.
    assert count_flops(forward_and_backward(recomputed), x, w) == 5 * 4 * once


def test_calls_are_entered_and_branches_are_not_added_up():
    x, w = shape(4, 4), shape(4, 4)
    once = 2 * 4**3

    @jax.custom_vjp
    def matmul(x, w):
        return jax.jit(jnp.matmul)(x, w)

    matmul.defvjp(
        lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g)
    )

    def branch(x, w):
        return lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert count_flops(jax.jit(matmul), x, w) == once
    assert count_flops(forward_and_backward(matmul), x, w) == 3 * once
    assert count_flops(branch, x, w) == 2 * once
    assert (
        count_flops(jax.vmap(jnp.matmul), shape(6, 4, 4), shape(6, 4, 5)) == 7.5 * once
    )
    # Of a choice by platform the default counts; of a shard_map all devices together.
    chosen = functools.partial(
        lax.platform_dependent, cpu=lambda x, w: x @ w @ w, default=jnp.matmul
    )
    assert count_flops(chosen, x, w) == once
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    specs = {"in_specs": (P("data"), P()), "out_specs": P("data")}
    f = jax.shard_map(jnp.matmul, mesh=mesh, **specs)
    assert count_flops(f, shape(16, 4), shape(4, 4)) == 4 * once


def test_unknown_turns_are_refused_unless_they_multiply_nothing():
    def until(body):
        return lambda x: lax.while_loop(lambda x: x.sum() < 9, body, x)

    with pytest.raises(ValueError, match="while_loop"):
        count_flops(until(lambda x: x @ x), shape(4, 4))
    assert count_flops(until(lambda x: x + x), shape(4, 4)) == 0


def test_agrees_with_xla_on_a_dense_net():
    def net(x, kernels):
        for stride, kernel in zip((2, 1, 2), kernels, strict=True):
            x = jax.nn.relu(conv(x, kernel, stride, 1))
        return (x.mean((1, 2)) ** 2).sum()

    kernels = [shape(3, 3, i, o) for i, o in ((3, 32), (32, 48), (48, 64))]
    grad = jax.grad(net, argnums=(0, 1))
    args = shape(2, 33, 40, 3), kernels
    xla = jax.jit(grad).lower(*args).compile().cost_analysis()["flops"]
    assert count_flops(grad, *args) == pytest.approx(xla, rel=0.01)


def test_temporaries_are_seen_without_running():
    def f(x):
        return jnp.sort(jnp.sort(x @ x, 0) @ x, 1)

    small, large = (compiled_temp_bytes(f, shape(n, n)) for n in (64, 128))
    assert large >= 4 * small * 0.9
    assert small >= 64 * 64 * 4


def counted(function, *args):
    """What a call adds to what this process has executed; and its value."""
    before, value = executed(), function(*args)
    return {name: n - before[name] for name, n in executed().items()}, value


def test_every_call_counts_by_the_shapes_it_is_given_padding_too():
    matmul = Counted(jax.jit(jnp.matmul))
    for n in (3, 3, 7):
        work, value = counted(matmul, jnp.ones((n, 4)), jnp.ones((4, 5)))
        assert work == {"flops": 2 * n * 4 * 5, "uncounted_calls": 0}
        assert value.shape == (n, 5)


def test_a_call_whose_loop_ends_on_data_is_reported_as_uncounted():
    def squared(x):
        """Until the sum is large; how often is only known when it runs."""
        return lax.while_loop(lambda x: x.sum() < 1e3, lambda x: x @ x, x)

    function = Counted(jax.jit(squared))
    for _ in range(2):
        work, value = counted(function, jnp.ones((2, 2)))
        assert work == {"flops": 0, "uncounted_calls": 1}
    assert value.sum() >= 1e3


def test_what_is_traced_is_no_call():
    matmul = Counted(jax.jit(jnp.matmul))
    assert counted(jax.eval_shape, matmul, shape(3, 4), shape(4, 5))[0]["flops"] == 0
    work, _ = counted(count_flops, matmul, shape(3, 4), shape(4, 5))
    assert work["flops"] == 0


def test_all_that_is_compiled_for_training_counts():
    """Steps with their gradients, predictions, and phases of staged methods."""
    w = jnp.ones((4, 4))
    loss = lambda w, x: jnp.sin(x @ w).sum()
    step = lambda w, x: (w - jax.grad(loss)(w, x), {})
    predict = lambda w, x, key: x @ w
    method = Method(lambda key, batch: key, step, predict)
    method = compile_method(method, make_mesh())
    x = jnp.ones((8, 4))
    product = 2 * 8 * 4 * 4
    assert counted(method.predict, w, x, jax.random.key(0))[0]["flops"] == product
    # Of the loss and of its gradient: that of x is not asked for.
    assert counted(method.step, jnp.copy(w), x)[0]["flops"] == 2 * product
    assert counted(compile_phase(jnp.matmul), x, w)[0]["flops"] == product
