"""The programs of StreamingCLAM's trunk: one tile, and the dense net of its size."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct as Shape
from jax.sharding import Mesh

from benchmarks.program_shapes import KEY, Program, Sizes, placed
from wsi_jax.ops.stream_plan import plan_stream
from wsi_jax.ops.trunk_ops import DENSE
from wsi_jax.training.compile import Phases


def streaming_programs(sizes: Sizes) -> Iterator[Program]:
    """A tile and the dense net, forward and back; on one device, for each streams
    slides of its own."""
    trunk = sizes.config("streaming_clam").method.trunk.trunk()
    net = lambda params, x, ops: trunk.apply(params, x, ops)
    params = jax.eval_shape(trunk.init, KEY, Shape((1, 64, 64, 3), jnp.uint8))
    kinds = (
        (_streamed, "tile of {:,} px", ("forward", "backward")),
        (_dense, "dense, {:,} px", ("forward", "gradient")),
    )
    for side in sizes.tiles_px:
        for way, words, parts in kinds:
            for part in parts:
                make = functools.partial(_on_one, way, net, params, side, part)
                yield Program("streaming_clam", f"{words.format(side)}, {part}", make)


def _on_one(way, net, params, side, part, mesh):
    function, shapes = way(net, params, side, part)
    return function, placed(Mesh(mesh.devices.reshape(-1)[:1], ("data",)), shapes)


def _streamed(net, params, side, part):
    plan = plan_stream(net, params, Shape((1, side, side, 3), jnp.uint8), (side, side))
    phases = Phases(net, plan, params)
    calls = {"forward": phases.forward_call, "backward": phases.backward_call}
    function, shapes = calls[part]
    donated = 0 if part == "backward" else ()
    return jax.jit(function, donate_argnums=donated), shapes


def _dense(net, params, side, part):
    forward = lambda params, x: net(params, x, DENSE)
    loss = lambda params, x: forward(params, x).astype(jnp.float32).sum()
    function = jax.grad(loss) if part == "gradient" else forward
    return jax.jit(function), (params, Shape((1, side, side, 3), jnp.uint8))
