"""What a streamed step takes is estimated before it begins, or refused with a mend."""

import jax
import numpy as np
import pytest
from trunks import TINY, trunk

from wsi_jax.ops.stream_plan import best_tile_side, plan_stream
from wsi_jax.ops.streaming import stream
from wsi_jax.training.flops import count_flops
from wsi_jax.training.memory_estimate import (
    TileError,
    _memory,
    device_bytes,
    memory_estimate,
    temporaries,
)
from wsi_jax.training.phases import Phases
from wsi_jax.training.tile_passes import Route
from wsi_jax.training.tile_slots import slot_bytes

SIZE = (2000, 3000)


@pytest.fixture(scope="module")
def made():
    net, params = trunk(TINY)
    replan = lambda tile_px: plan_stream(
        net, params, jax.ShapeDtypeStruct((1, *tile_px, 3), np.uint8), tile_px
    )
    plans = replan((256, 256))
    return params, plans, replan, Phases(net, plans, params)


def estimate(made, needed=None, offload=False, **more):
    params, plans, replan, phases = made
    route = Route(plans, SIZE, None, needed, offload=offload)
    return memory_estimate(phases, route, replan, params, "--net", **more)


def test_the_estimate_names_geometry_work_and_memory(made):
    text = estimate(made)
    assert "a cell every 8 px sees 51 px; the map runs 3 cells (24 px) late" in text
    assert "tiles of 256 px: 96 of 8 x 12 on the slide that takes most" in text
    assert "FLOPs" in text
    assert "frozen" not in text
    assert "frozen for the first 7 steps" in estimate(made, frozen_steps=7)
    assert 1e8 < device_bytes() < 1e14


def test_too_little_memory_names_a_tile_that_fits(made):
    _, plans, _, phases = made
    needed = np.zeros(plans.tiles(SIZE), bool)
    needed[0, 0] = True
    room = int(0.6 * temporaries(phases))
    message = r"--net\.tile_px=256 takes .* Set --net\.tile_px=128"
    with pytest.raises(TileError, match=message):
        estimate(made, needed=needed, room=room, offload=True)
    with pytest.raises(TileError, match=r"no tile fits: .* at least; keep the seams"):
        estimate(made, room=1000)


def test_what_is_not_computed_takes_nothing(made):
    """Neither work nor seams of tiles without tissue; nor seams in host memory."""
    _, plans, _, phases = made
    needed = np.zeros(plans.tiles(SIZE), bool)
    needed[2, 3:5] = True
    room = int(1.05 * temporaries(phases)) + 200_000 + slot_bytes(plans, (8, 12))
    with pytest.raises(TileError):
        estimate(made, room=room)
    assert "2 of 8 x 12 on" in estimate(made, needed=needed, room=room)
    room += 8 * 12 * plans.out.size * 4
    assert "FLOPs" in estimate(made, room=room, offload=True)


def test_more_tiles_at_once_are_no_more_to_keep(made):
    """Seams and map of a slide are the same in batches of any size."""
    params, plans, *_ = made
    net, _ = trunk(TINY)
    tiles = jax.ShapeDtypeStruct((4, 256, 256, 3), np.uint8)
    four = plan_stream(net, params, tiles, (256, 256))
    kept = lambda plan: _memory(Route(plan, SIZE, None), plan, params, 0).seams
    assert kept(four) == kept(plans)


def test_tiles_cost_what_the_whole_loop_does():
    """So that an image too large to run is counted by the same arithmetic."""
    net, params = trunk(TINY)
    tile, size = (64, 64), (1, 200, 200, 3)
    x = jax.ShapeDtypeStruct(size, np.uint8)
    plans = plan_stream(net, params, x, tile)
    phases = Phases(net, plans, params)
    calls = phases.forward_call, phases.backward_call
    each = [count_flops(function, *shapes) for function, shapes in calls]
    loop = jax.grad(lambda p, x: stream(net, p, x, tile).sum())
    assert count_flops(loop, params, x) == np.prod(plans.tiles(size[1:3])) * sum(each)


@pytest.mark.parametrize("side", [1000, 4096])
def test_the_fitting_tile_leaves_least_over(made, side):
    _, plans, replan, _ = made
    taken = lambda px: np.prod(replan((px, px)).tiles((side, side))) * px**2
    px = best_tile_side(plans, side, 256)
    assert 0.8 * 256 <= px <= 1.2 * 256
    assert all(taken(px) <= taken(8 * n) for n in range(26, 39))
