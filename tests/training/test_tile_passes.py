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
from wsi_jax.training.compile import Phases
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


@pytest.fixture(scope="module")
def compiled():
    with jax.enable_x64(True):
        net, params = trunk(TINY)
        plans = plan_stream(net, params, image(64, 72), TILE)
        return net, params, plans, Phases(net, plans, params)


def cotangent_of(walked):
    return np.random.default_rng(2).normal(size=walked.cells.shape)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("size", [(64, 72), (51, 37)])
def test_there_and_back_is_dense(x64, compiled, size, offload):
    """For slides of any size by the same two compiled functions."""
    net, params, plans, phases = compiled
    x = image(*size)
    slide = Slide(x, plans)
    route = Route(plans, size, slide.read, offload=offload)
    walked = forward_pass(phases, params, route)
    cotangent = cotangent_of(walked)
    grads = backward_pass(phases, params, route, walked, cotangent)
    cells, back = jax.vjp(lambda p: net(p, x, DENSE), params)
    assert_same(walked.cells, cells)
    assert_same(grads, back(jnp.asarray(cotangent))[0])
    half = len(slide.asked) // 2
    assert slide.asked[:half] == slide.asked[half:][::-1]
    assert len(set(slide.asked)) == half == np.prod(plans.tiles(size))
    more = backward_pass(phases, params, route, walked, cotangent, grads)
    assert_same(more, jax.tree.map(lambda g: 2 * g, back(jnp.asarray(cotangent))[0]))


def test_pixels_have_their_gradient_too(x64, compiled):
    net, params, plans, phases = compiled
    x = image(51, 37)
    route = Route(plans, (51, 37), Slide(x, plans).read)
    walked = forward_pass(phases, params, route)
    cotangent = cotangent_of(walked)
    whole = np.zeros((1, 10 * TILE[0], 10 * TILE[1], 3))
    for (r, c), grad in pixel_gradients(phases, params, route, walked, cotangent):
        whole[:, r * 16 : (r + 1) * 16, c * 24 : (c + 1) * 24] = grad
    _, back = jax.vjp(lambda x: net(params, x, DENSE), x)
    assert_same(whole[:, :51, :37], back(jnp.asarray(cotangent))[0])
    assert not whole[:, 51:].any()
    assert not whole[:, :, 37:].any()


def test_tiles_that_are_not_needed_are_never_read(x64, compiled):
    net, params, plans, phases = compiled
    size = (120, 112)
    x = image(*size)
    wanted = np.zeros(plans.cells(size), bool)
    wanted[1, 2] = wanted[12, 9] = True
    needed = plans.tiles_for_cells(wanted, size)
    slide = Slide(x, plans)
    route = Route(plans, size, slide.read, needed)
    walked = forward_pass(phases, params, route)
    cotangent = cotangent_of(walked) * wanted[None, :, :, None]
    grads = backward_pass(phases, params, route, walked, cotangent)
    cells, back = jax.vjp(lambda p: net(p, x, DENSE), params)
    assert_same(walked.cells[:, wanted], cells[:, wanted])
    assert_same(grads, back(jnp.asarray(cotangent))[0])
    assert set(slide.asked) == set(zip(*np.nonzero(needed), strict=True))
    assert needed.sum() < needed.size


def test_masked_from_the_host_is_masked_on_the_device(x64, compiled):
    net, params, plans, _ = compiled
    size, side = (115, 101), 16
    x = image(*size)
    mask = np.zeros((8, 7), bool)
    mask[1, 2] = mask[5:7, 6] = True
    tissue = TissueMask(mask, side)
    phases = Phases(net, plans, params, side)
    slide = Slide(x, plans)
    route = Route(plans, size, slide.read, plans.tiles_on_tissue(tissue, size), tissue)
    walked = forward_pass(phases, params, route)
    at = [np.arange(n) * plans.field.stride // side for n in plans.cells(size)]
    wanted = mask[at[0]][:, at[1]]
    cotangent = cotangent_of(walked) * wanted[None, :, :, None]
    grads = backward_pass(phases, params, route, walked, cotangent)
    cells, back = jax.vjp(lambda p: dense_on_tissue(net, p, x, tissue), params)
    assert_same(walked.cells[:, wanted], cells[:, wanted])
    assert_same(grads, back(jnp.asarray(cotangent))[0])
    assert 0 < len(slide.asked) // 2 < np.prod(plans.tiles(size))
