"""The programs of StreamingCLAM's trunk: tiles, and the dense net on as many images."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import ShapeDtypeStruct as Shape
from jax.sharding import Mesh

from benchmarks.program_shapes import KEY, Program, Sizes, placed
from wsi_jax.ops.stream_plan import plan_stream
from wsi_jax.ops.tile_schedule import tile_batches
from wsi_jax.ops.trunk_ops import DENSE
from wsi_jax.training.phases import Phases

WHOLE_PX = 65_536  # side of the slide of a whole step
AT_ONCE, LARGE_PX = 8, 4096  # tiles of a batch; of those so large, one


def streaming_programs(sizes: Sizes) -> Iterator[Program]:
    """A batch of tiles and the dense net, forward and back; on one device, for each
    streams slides of its own."""
    trunk = sizes.config("streaming_clam").method.trunk.trunk()
    net = lambda params, x, ops: trunk.apply(params, x, ops)
    params = jax.eval_shape(trunk.init, KEY, Shape((1, 64, 64, 3), jnp.uint8))
    for side in sizes.tiles_px:
        count = AT_ONCE if side < LARGE_PX else 1
        tiles = Shape((count, side, side, 3), jnp.uint8)
        plan = plan_stream(net, params, tiles, (side, side), packed=True)
        whole = WHOLE_PX, WHOLE_PX
        every = np.ones(plan.tiles(whole), bool)
        facts = {
            "step_calls": len(tile_batches(every, count)),
            "seam_bytes": plan.seam_bytes(whole),
        }
        kinds = (
            (functools.partial(_streamed, plan), "streamed", "backward", facts),
            (_dense, "dense", "gradient", {}),
        )
        for way, word, back, more in kinds:
            for part in ("forward", back):
                make = functools.partial(_on_one, way, net, params, tiles, part)
                name = f"{word}, {count} x {side:,} px, {part}"
                yield Program("streaming_clam", name, make, more)


def _on_one(way, net, params, tiles, part, mesh):
    function, shapes = way(net, params, tiles, part)
    return function, placed(Mesh(mesh.devices.reshape(-1)[:1], ("data",)), shapes)


def _streamed(plan, net, params, tiles, part):
    del tiles
    phases = Phases(net, plan, params)
    calls = {"forward": phases.forward_call, "backward": phases.backward_call}
    function, shapes = calls[part]
    donated = 0 if part == "backward" else ()
    return jax.jit(function, donate_argnums=donated), shapes


def _dense(net, params, tiles, part):
    """Its gradient is added to another, from a map's that is given, as in streaming."""
    forward = lambda params, x: net(params, x, DENSE)
    if part == "forward":
        return jax.jit(forward), (params, tiles)

    def gradient(grads, cotangent, params, x):
        (more,) = jax.vjp(lambda params: forward(params, x), params)[1](cotangent)
        return jax.tree.map(jnp.add, grads, more)

    cells = jax.eval_shape(forward, params, tiles)
    return jax.jit(gradient, donate_argnums=0), (params, cells, params, tiles)
