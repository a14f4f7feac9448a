"""What a streamed step takes is told before it begins, or refused with a mend."""

import jax
import numpy as np
import pytest
from trunks import TINY, trunk

from wsi_jax.ops.streaming import fitting, plan, stream
from wsi_jax.train.compile import Phases
from wsi_jax.train.flops import count_flops
from wsi_jax.train.outlook import TileError, device_bytes, outlook, temporaries

SIZE = (2000, 3000)


@pytest.fixture(scope="module")
def made():
    net, params = trunk(TINY)
    replan = lambda tile_px: plan(
        net, params, jax.ShapeDtypeStruct((1, *tile_px, 3), np.uint8), tile_px
    )
    plans = replan((256, 256))
    return params, plans, replan, Phases(net, plans, params)


def told(made, **more):
    params, plans, replan, phases = made
    return outlook(phases, plans, replan, params, SIZE, "--tile", **more)


def test_it_tells_geometry_work_and_memory(made):
    text = told(made)
    assert "a cell every 8 px sees 51 px; the map runs 3 cells (24 px) late" in text
    assert "tiles of 256 px: 8 x 12 on the largest slide, 2,000 x 3,000 px" in text
    assert "FLOPs" in text
    assert 1e8 < device_bytes() < 1e14


def test_too_little_memory_names_a_tile_that_fits(made):
    _, _, _, phases = made
    room = int(0.6 * temporaries(phases))
    with pytest.raises(TileError, match=r"--tile=256 takes about .* Set --tile=128: "):
        told(made, room=room, offload=True)
    with pytest.raises(TileError, match=r"no tile fits: .* at least\. Keep the seams"):
        told(made, room=1000)


def test_seams_in_host_memory_take_none_of_the_device(made):
    _, _, _, phases = made
    room = int(1.05 * temporaries(phases)) + 100_000
    with pytest.raises(TileError):
        told(made, room=room)
    assert "seams 0 GB" in told(made, room=room, offload=True)


def test_tiles_cost_what_the_whole_loop_does():
    """So that an image too large to run is counted by the same arithmetic."""
    net, params = trunk(TINY)
    tile, size = (64, 64), (1, 200, 200, 3)
    x = jax.ShapeDtypeStruct(size, np.uint8)
    plans = plan(net, params, x, tile)
    phases = Phases(net, plans, params)
    calls = phases.forward_call, phases.backward_call
    each = [count_flops(function, *shapes) for function, shapes in calls]
    loop = jax.grad(lambda p, x: stream(net, p, x, tile).sum())
    assert count_flops(loop, params, x) == np.prod(plans.tiles(size[1:3])) * sum(each)


@pytest.mark.parametrize("side", [1000, 2048, 4096])
def test_the_fitting_tile_leaves_least_over(made, side):
    _, plans, replan, _ = made
    taken = lambda px: np.prod(replan((px, px)).tiles((side, side))) * px**2
    px = fitting(plans, side, 256)
    assert 0.8 * 256 <= px <= 1.2 * 256
    assert all(taken(px) <= taken(8 * n) for n in range(26, 39))
