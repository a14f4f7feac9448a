"""A slide from the host, tile by tile, is the image on the device at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trunks import TINY, assert_same, image, trunk

from wsi_jax.ops.maps import DENSE
from wsi_jax.ops.streaming import cut, plan
from wsi_jax.train.compile import compile_stream
from wsi_jax.train.walk import walk, walk_back

TILE = (16, 24)


class Slide:
    """Tiles of an image, as a reader gives them; remembers what was read."""

    def __init__(self, x, plans):
        self.tiles = np.asarray(cut(x, plans.tile_px, plans.tiles(x.shape[1:3])))
        self.asked = []

    def read(self, order):
        for at in order:
            self.asked.append(at)
            yield self.tiles[at]


@pytest.fixture(scope="module")
def compiled():
    with jax.enable_x64(True):
        net, params = trunk(TINY)
        return net, params, compile_stream(net, (True, True))


@pytest.mark.parametrize("size", [(64, 72), (51, 37)])
def test_there_and_back_is_dense(x64, compiled, size):
    """For slides of any size by the same two compiled functions."""
    net, params, phases = compiled
    x = image(*size)
    plans = plan(net, params, x, TILE)
    slide = Slide(x, plans)
    walked = walk(phases, plans, params, size, slide.read)
    cotangent = jnp.asarray(np.random.default_rng(2).normal(size=walked.cells.shape))
    grads = walk_back(phases, plans, params, size, slide.read, walked, cotangent)
    cells, back = jax.vjp(lambda p: net(p, x, DENSE), params)
    assert_same(walked.cells, cells)
    assert_same(grads, back(cotangent)[0])
    half = len(slide.asked) // 2
    assert slide.asked[:half] == slide.asked[half:][::-1]
    assert len(set(slide.asked)) == half == np.prod(plans.tiles(size))
    assert phases.forward._cache_size() == phases.backward._cache_size() == 1


def test_tiles_that_are_not_needed_are_never_read(x64, compiled):
    net, params, phases = compiled
    size = (120, 112)
    x = image(*size)
    plans = plan(net, params, x, TILE)
    wanted = np.zeros(plans.cells(size), bool)
    wanted[1, 2] = wanted[12, 9] = True
    needed = np.asarray(plans.needed(wanted, size))
    slide = Slide(x, plans)
    walked = walk(phases, plans, params, size, slide.read, needed)
    cotangent = jnp.asarray(np.random.default_rng(2).normal(size=walked.cells.shape))
    cotangent *= wanted[None, :, :, None]
    grads = walk_back(phases, plans, params, size, slide.read, walked, cotangent)
    cells, back = jax.vjp(lambda p: net(p, x, DENSE), params)
    assert_same(walked.cells[:, wanted], cells[:, wanted])
    assert_same(grads, back(cotangent)[0])
    assert set(slide.asked) == set(zip(*np.nonzero(needed), strict=True))
    assert needed.sum() < needed.size
