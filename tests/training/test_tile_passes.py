"""A slide from the host, tile by tile, is the image on the device at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trunks import TINY, assert_same, image, trunk

from wsi_jax.ops.stream_plan import plan_stream
from wsi_jax.ops.stream_tile import TissueMask
from wsi_jax.ops.streaming import dense_on_tissue, split_into_tiles
from wsi_jax.ops.trunk_ops import DENSE
from wsi_jax.training.phases import Phases
from wsi_jax.training.tile_passes import (
    Route,
    backward_pass,
    forward_pass,
    pixel_gradients,
)

TILE = (16, 24)


class Slide:
    """Tiles of an image, as a reader gives them; remembers what was read."""

    def __init__(self, x, plans):
        self.tiles = np.asarray(
            split_into_tiles(x, plans.tile_px, plans.tiles(x.shape[1:3]))
        )
        self.asked = []

    def read(self, order):
        for at in order:
            self.asked.append(at)
            yield self.tiles[at]


@pytest.fixture(scope="module", params=[1, 3], ids=["each", "three at once"])
def compiled(request):
    with jax.enable_x64(True):
        net, params = trunk(TINY)
        plans = plan_stream(net, params, image(64, 72, b=request.param), TILE, True)
        return net, params, plans, Phases(net, plans, params)


def branches(params, x, ops):
    """One ReLU's map, read by a maximum and by a sum."""
    x = ops.relu(ops.conv(x, params["a"], 2, 1))
    return ops.add(ops.max_pool(x, 3, 2, 1), ops.conv(x, params["b"], 2, 1))


def learnt_pixels(params, x, ops):
    """A parameter acts on pixels, before any window."""
    scaled = ops.each(lambda y: y * params["scale"][None, None, None], x)
    return ops.conv(scaled, params["a"], 2, 1)


def grouped(params, x, ops):
    """A first convolution in two groups, which packed pixels cannot have."""
    four = lambda y: jnp.concatenate([y, y[..., :1]], -1)
    return ops.conv(ops.each(four, x), params["b"][:, :, :2], 2, 1)


def strided_twice(params, x, ops):
    """Pixels are read by two convolutions, one of which has another stride."""
    return ops.add(
        ops.max_pool(ops.conv(x, params["a"], 1, 1), 2, 2, 0, ceil=True),
        ops.conv(x, params["a"], 2, 1),
    )


@pytest.mark.parametrize("net", [branches, learnt_pixels, grouped, strided_twice])
def test_nets_of_other_kinds_are_dense_too(x64, net):
    rng, size = np.random.default_rng(0), (51, 37)
    params = {
        "a": jnp.asarray(rng.normal(size=(3, 3, 3, 4))),
        "b": jnp.asarray(rng.normal(size=(3, 3, 4, 4))),
        "scale": jnp.asarray(rng.uniform(0.8, 1.2, 3)),
    }
    plans = plan_stream(net, params, image(8, 8, b=3), (8, 8), True)
    x, phases = image(*size), Phases(net, plans, params)
    route = Route(plans, size, Slide(x, plans).read)
    passed = forward_pass(phases, params, route)
    cotangent = cotangent_of(passed)
    grads = backward_pass(phases, params, route, passed, cotangent)
    cells, back = jax.vjp(lambda p: net(p, x, DENSE), params)
    assert_same((passed.cells, grads), (cells, back(jnp.asarray(cotangent))[0]))


def cotangent_of(passed):
    return np.random.default_rng(2).normal(size=passed.cells.shape)


def there_and_back(dense, x, cotangent):
    """The map, and the gradient for x."""

    @jax.jit
    def run(x, cotangent):
        cells, back = jax.vjp(dense, x)
        return cells, *back(cotangent)

    return run(x, cotangent)


@pytest.mark.parametrize(("size", "offload"), [((64, 72), False), ((51, 37), True)])
def test_there_and_back_is_dense(x64, compiled, size, offload):
    """For slides of any size by the same two compiled functions."""
    net, params, plans, phases = compiled
    x = image(*size)
    slide = Slide(x, plans)
    route = Route(plans, size, slide.read, offload=offload)
    passed = forward_pass(phases, params, route)
    cotangent = cotangent_of(passed)
    grads = backward_pass(phases, params, route, passed, cotangent)
    cells, right = there_and_back(lambda p: net(p, x, DENSE), params, cotangent)
    assert_same((passed.cells, grads), (cells, right))
    order = [tuple(map(int, at)) for batch in route.batches() for at in batch]
    half = len(slide.asked) // 2
    assert slide.asked[:half] == order
    assert sorted(slide.asked[half:]) == sorted(order)
    assert len(set(order)) == half == np.prod(plans.tiles(size))
    more = backward_pass(phases, params, route, passed, cotangent, grads)
    assert_same(more, jax.tree.map(lambda g: 2 * g, right))


@pytest.mark.parametrize("masked", [False, True])
def test_tiles_that_are_not_needed_are_never_read(x64, compiled, masked):
    """Those that no wanted cell depends on, or those off the tissue."""
    net, params, plans, phases = compiled
    size, side = (115, 101), 16
    x, mask = image(*size), np.zeros((8, 7), bool)
    mask[1, 2] = mask[5:7, 6] = True
    at = [np.arange(n) * plans.field.stride // side for n in plans.cells(size)]
    wanted, tissue = mask[at[0]][:, at[1]], TissueMask(mask, side)
    dense, needed = lambda p: net(p, x, DENSE), plans.tiles_for_cells(wanted, size)
    if masked:
        phases = Phases(net, plans, params, side)
        needed = plans.tiles_on_tissue(tissue, size)
        there = TissueMask(jnp.asarray(mask), side)
        dense = lambda p: dense_on_tissue(net, p, x, there)
    slide = Slide(x, plans)
    route = Route(plans, size, slide.read, needed, tissue if masked else None)
    passed = forward_pass(phases, params, route)
    cotangent = cotangent_of(passed) * wanted[None, :, :, None]
    grads = backward_pass(phases, params, route, passed, cotangent)
    cells, right = there_and_back(dense, params, cotangent)
    assert_same(passed.cells[:, wanted], cells[:, wanted])
    assert_same(grads, right)
    assert set(slide.asked) == set(zip(*np.nonzero(needed), strict=True))
    assert 0 < needed.sum() < needed.size


def test_pixels_have_their_gradient_too(x64, compiled):
    net, params, plans, phases = compiled
    x = image(51, 37)
    route = Route(plans, (51, 37), Slide(x, plans).read)
    passed = forward_pass(phases, params, route)
    cotangent = cotangent_of(passed)
    whole = np.zeros((1, 10 * TILE[0], 10 * TILE[1], 3))
    for (r, c), grad in pixel_gradients(phases, params, route, passed, cotangent):
        whole[:, r * 16 : (r + 1) * 16, c * 24 : (c + 1) * 24] = grad
    _, right = there_and_back(lambda x: net(params, x, DENSE), x, cotangent)
    assert_same(whole[:, :51, :37], right)
    assert not whole[:, 51:].any()
    assert not whole[:, :, 37:].any()
