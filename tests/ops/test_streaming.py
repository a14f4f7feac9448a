"""Streamed = dense, in value and every gradient, for any size, tile and trunk."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trunks import NECK, NEXT, TINY, assert_same, image, trunk, trunk_shapes

from benchmarks.overlapping_tiles import halo
from wsi_jax.nets.norm import NormKind
from wsi_jax.ops import tile_border
from wsi_jax.ops.stream_plan import plan_stream
from wsi_jax.ops.stream_tile import StreamError, TissueMask
from wsi_jax.ops.streaming import dense_on_tissue, stream
from wsi_jax.ops.trunk_ops import DENSE, Ops


def gradients_of(forward, weight=1.0):
    """Gradients of a random linear function of the map for parameters and pixels."""

    def value(params, x):
        cells = forward(params, x) * weight
        random = np.random.default_rng(2).normal(size=cells.shape)
        return (cells * random).sum(), cells

    return jax.jit(jax.grad(value, (0, 1), has_aux=True))


def assert_streamed(net, params, x, tile, wanted=None):
    """Streamed = dense, or where `wanted` is set."""
    weight = 1.0 if wanted is None else wanted[None, :, :, None]
    dense = gradients_of(lambda p, x: net(p, x, DENSE), weight)
    streamed = gradients_of(lambda p, x: stream(net, p, x, tile, wanted), weight)
    assert_same(streamed(params, x), dense(params, x))


def pooled(make):
    """A trunk with one more layer, which counts windows only partly in the map."""
    net, params = trunk(make)
    return lambda p, x, ops: ops.max_pool(net(p, x, ops), 2, 2, 0, ceil=True), params


@pytest.mark.parametrize(
    ("made", "make", "size", "tile"),
    [
        (pooled, TINY, (9, 40), (16, 16)),  # smaller than a tile, and off every grid
        (pooled, TINY, (65, 37), 16),  # strips
        (trunk, NECK, (35, 29), (16, 16)),
        # Of whole blocks; their depthwise kernels take long to compile.
        (trunk, functools.partial(NEXT, blocks=(1, 0)), (35, 29), (16, 24)),
    ],
)
def test_streamed_is_dense(x64, made, make, size, tile):
    assert_streamed(*made(make), image(*size), tile)


def test_overlapping_tiles_are_dense_too(x64):
    net, params = trunk(TINY)
    x = image(75, 61)
    tiled = gradients_of(lambda p, x: halo(net, p, x, (80, 96)))
    dense = gradients_of(lambda p, x: net(p, x, DENSE))
    assert_same(tiled(params, x), dense(params, x))
    with pytest.raises(StreamError, match=r"\(16, 16\) px is all halo; [0-9]+ px"):
        halo(net, params, x, (16, 16))


def test_wanted_cells_are_exact_though_other_tiles_are_left_out(x64):
    net, params = trunk(TINY)
    x, tile = image(120, 112), (16, 16)
    plan = plan_stream(net, params, x, tile)
    wanted = np.zeros(plan.cells((120, 112)), bool)
    wanted[1, 2] = wanted[11:13, 9] = True
    count = np.asarray(plan.tiles_for_cells(wanted, (120, 112))).sum()
    assert 0 < count < 0.8 * np.prod(plan.tiles((120, 112)))
    assert_streamed(net, params, x, tile, wanted)
    # No tile more than a cell depends on: without any of them it is wrong.
    wanted = np.zeros_like(wanted)
    wanted[7, 6] = True
    needed = np.nonzero(np.asarray(plan.tiles_for_cells(wanted, (120, 112))))
    for axis, cell in enumerate((7, 6)):
        assert needed[axis].min() == (cell * 8 - plan.field.before) // 16
        assert needed[axis].max() >= (cell * 8 + plan.field.after) // 16
        last = (cell + plan.lag[axis]) // plan.out.shape[1 + axis]
        assert needed[axis].max() == last


def test_on_tissue_streamed_is_dense(x64):
    """Outside tissue every window finds zeros; pixels there have no effect."""
    net, params = pooled(TINY)
    size, cell_px, tile = (115, 101), 16, (16, 32)
    x = image(*size)
    mask = np.zeros((8, 7), bool)
    mask[1, 2] = mask[5:7, 6] = True
    tissue = TissueMask(jnp.asarray(mask), cell_px)
    plan = plan_stream(net, params, x, tile)
    count = np.asarray(plan.tiles_on_tissue(tissue, size)).sum()
    assert 0 < count < np.prod(plan.tiles(size))
    stride = plan.field.stride
    at = [np.arange(n) * stride // cell_px for n in plan.cells(size)]
    weight = mask[at[0]][:, at[1]][None, :, :, None]
    by_hand = gradients_of(
        lambda p, x: net(p, (x, 1), only_on(mask, cell_px))[0], weight
    )
    dense = gradients_of(lambda p, x: dense_on_tissue(net, p, x, tissue), weight)
    streamed = gradients_of(lambda p, x: stream(net, p, x, tile, tissue=tissue), weight)
    right = dense(params, x)
    assert_same(right, by_hand(params, x))
    assert_same(streamed(params, x), right)
    outside = ~np.kron(mask, np.ones((cell_px, cell_px), bool))[: size[0], : size[1]]
    other = jnp.where(outside[None, ..., None], 255 - x, x)
    np.testing.assert_array_equal(dense(params, other)[1], right[1])


def only_on(mask, cell_px):
    """The operations on (map, its stride), every window behind the mask."""

    def zeroed(x, stride):
        at = [np.arange(n) * stride // cell_px for n in x.shape[1:3]]
        return jnp.where(mask[at[0]][:, at[1]][None, :, :, None], x, 0)

    def windowed(op):
        return lambda m, size, s, *padding, **more: (
            op(zeroed(*m), size, s, *padding, **more),
            m[1] * s,
        )

    return Ops(
        conv=windowed(DENSE.conv),
        max_pool=windowed(DENSE.max_pool),
        add=lambda a, b: (a[0] + b[0], a[1]),
        relu=lambda m: (jax.nn.relu(m[0]), m[1]),
        each=lambda f, m: (f(m[0]), m[1]),
        whole=None,
    )


def test_a_plan_has_receptive_field_stride_and_lag():
    """The field is where the gradient of one cell reaches, and no pixel less."""
    net, params = trunk(TINY)
    x = image(96, 96)
    plan = plan_stream(net, params, x, (16, 16))
    assert (plan.field.stride, plan.field.size) == (8, 51)
    cell = lambda x: net(params, x, DENSE)[0, 6, 6].sum()
    reach = jax.jit(jax.grad(cell))(x)
    rows = np.flatnonzero(np.abs(reach[0]).sum((1, 2)))
    at = 6 * plan.field.stride
    assert rows.min() >= at - plan.field.before
    assert rows.max() <= at + plan.field.after
    whole = trunk_shapes(functools.partial(TINY, blocks=(3, 4, 6, 3)))
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), "float32")
    assert plan_stream(*whole, x, (64, 64)).lag == (14, 14)


def test_seams_are_what_autodiff_keeps():
    """Temporaries of the gradient grow with the image as the plan says they do."""
    net, params = trunk_shapes(TINY)
    tile = (64, 64)

    def temporaries(side):
        x = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
        loss = lambda params, x: stream(net, params, x, tile).sum()
        memory = jax.jit(jax.grad(loss)).lower(params, x).compile().memory_analysis()
        return memory.temp_size_in_bytes, plan_stream(net, params, x, tile)

    (small, plans), (large, _) = (temporaries(side) for side in (488, 1000))
    seams = lambda side: plans.seam_bytes((side, side))
    image_bytes = 3 * (1000**2 - 488**2)  # cut into tiles
    grown = seams(1000) - seams(488)
    assert large - small < 1.5 * grown + 3 * image_bytes


@pytest.mark.parametrize(
    ("make", "tile", "message"),
    [
        (
            functools.partial(TINY, norm=NormKind.group),
            (16, 16),
            "Norm looks at a whole map at once",
        ),
        (TINY, (16, 20), "5 positions .* do not divide by a stride of 2"),
    ],
)
def test_what_cannot_stream_says_so(make, tile, message):
    net, params = trunk_shapes(make)
    with pytest.raises(StreamError, match=message):
        plan_stream(net, params, jax.ShapeDtypeStruct((1, 64, 64, 3), "float32"), tile)


def test_padding_as_wide_as_a_kernel_is_refused():
    net = lambda params, x, ops: ops.conv(x, params, 1, 1)
    x, kernel = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 1, 3, 4))
    with pytest.raises(StreamError, match="size 1 with a padding of 1; pad by less"):
        plan_stream(net, kernel, x, (16, 16))


def test_the_reference_network_of_another_library(x64, optimised, shared):
    """PyTorch's numbers, ours dense and streamed: output and every gradient."""
    folder = shared / "fixtures" / "streaming"
    with np.load(folder / "residual_256x192.npz") as file:
        numbers = dict(file)
    net, params = reference(numbers)
    x = jnp.asarray(numbers["input"].transpose(0, 2, 3, 1))
    cotangent = numbers["cotangent"].transpose(0, 2, 3, 1)

    for forward in (
        lambda p, x: net(p, x, DENSE),
        lambda p, x: stream(net, p, x, (64, 32)),
    ):
        loss = lambda p, x, f=forward: (f(p, x) * cotangent).sum()
        value, (grads, to_x) = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)
        np.testing.assert_allclose(value, numbers["loss"], rtol=1e-12)
        assert_same(to_x, numbers["grad.input"].transpose(0, 2, 3, 1))
        for name, grad in grads.items():
            right = numbers[f"grad.{name}"]
            right = right.transpose(2, 3, 1, 0) if right.ndim == 4 else right
            assert_same(grad, right)


def reference(numbers):
    """The fixture's net against our operations, its parameters by its own names."""
    read = lambda name: numbers[f"param.{name}"]
    learnt = [k.removeprefix("grad.") for k in numbers if k.startswith("grad.")]
    params = {n: jnp.asarray(read(n)) for n in learnt if n != "input"}
    params = {
        n: p.transpose(2, 3, 1, 0) if p.ndim == 4 else p for n, p in params.items()
    }
    eps = float(numbers["bn_eps"])

    def net(params, x, ops):
        def conv(x, name, stride, padding):
            return ops.conv(x, params[f"{name}.weight"], stride, padding)

        def norm(x, name):
            mean, var = read(f"{name}.running_mean"), read(f"{name}.running_var")
            scale = params[f"{name}.weight"] / np.sqrt(var + eps)
            bias = params[f"{name}.bias"] - mean * scale
            along = lambda a: a[None, None, None]
            return ops.each(lambda y: y * along(scale) + along(bias), x)

        relu = lambda x: ops.each(jax.nn.relu, x)
        x = relu(norm(conv(x, "conv1", 2, 3), "bn1"))
        x = ops.max_pool(x, 3, 2, 1)
        for block, stride in (("b1", 1), ("b2", 2)):
            y = relu(norm(conv(x, f"{block}.conv1", stride, 1), f"{block}.bn1"))
            y = norm(conv(y, f"{block}.conv2", 1, 1), f"{block}.bn2")
            if stride == 2:
                x = norm(conv(x, f"{block}.down", 2, 0), f"{block}.down_bn")
            x = relu(ops.add(y, x))
        return x

    chex.assert_equal(len(params), len(learnt) - 1)
    return net, params


@pytest.mark.parametrize(("seed", "in_parts"), [(0, True), (0, False), (3, True)])
def test_any_net_streams(x64, monkeypatch, seed, in_parts):
    """Kernels, strides and paddings as they fall; the smallest tile there is.

    Borders of tiles are computed apart as on a TPU, or with the tile as elsewhere.
    """
    monkeypatch.setattr(tile_border, "IN_PARTS", ("cpu",) if in_parts else ())
    rng = np.random.default_rng(seed)
    layers, params, d = [], [], 3
    for _ in range(5):
        k, s, out = int(rng.integers(1, 6)), int(rng.integers(1, 3)), 4
        kind = rng.choice(["conv", "conv", "pool", "skip"])
        if kind == "skip" and d != 4:
            kind = "conv"
        k, s, p = (2 * (k // 2) + 1, 1, k // 2) if kind == "skip" else (k, s, k // 2)
        if kind == "pool":
            k, p = max(k, 2), max(k, 2) // 2
        layers.append((kind, k, s, p, bool(rng.integers(2))))
        if kind != "pool":
            kernel = rng.normal(size=(k, k, d, out)) / k
            params.append([jnp.asarray(kernel), jnp.asarray(rng.normal(size=out))])
            d = out

    def net(params, x, ops):
        left = iter(params)
        for kind, k, s, p, ceil in layers:
            if kind == "pool":
                x = ops.max_pool(x, k, s, p, ceil=ceil)
                continue
            kernel, bias = next(left)
            y = ops.conv(x, kernel, s, p)
            y = ops.each(lambda y, b=bias: jnp.tanh(y + b[None, None, None]), y)
            x = ops.add(x, y) if kind == "skip" else y
        return x

    x = image(*rng.integers(17, 48, 2))
    stride = int(np.prod([s for _, _, s, _, _ in layers]))
    assert_streamed(net, params, x, (stride, stride * int(rng.integers(1, 4))))
