"""Memory of a slide streamed from the host, by the size of the slide.

    python -m benchmarks.streaming_memory --out benchmarks/results/streaming_memory.json

Forward and backward of a narrow ResNet-18 and max-pooling to 256 px over pixels that
are made when they are asked for. Every size has a process of its own: its peak of
resident memory, and the seams that it kept, computed beforehand and counted. What is
left should not depend on the size.
"""

import resource
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record
from benchmarks.device import in_own_process
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.ops.stream_plan import plan_stream
from wsi_jax.training.phases import Phases
from wsi_jax.training.tile_passes import Route, backward_pass, forward_pass

SIZES, COUNTED = (4096, 8192, 16384), 65_536
WIDTH, TILE_PX = 8, 1024


def net():
    """The net, its parameters and its plan."""
    module = Encoder(width=WIDTH).trunk()
    params = module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3), jnp.uint8))

    def cells(params, x, ops):
        return ops.max_pool(module.apply(params, x, ops), 8, 8, 0, ceil=True)

    one = jax.ShapeDtypeStruct((1, TILE_PX, TILE_PX, 3), jnp.uint8)
    return cells, params, plan_stream(cells, params, one, (TILE_PX, TILE_PX), True)


def pixels(order):
    """Tiles that depend on where they are, made one by one."""
    for r, c in order:
        rng = np.random.default_rng([r, c])
        yield rng.integers(0, 256, (1, TILE_PX, TILE_PX, 3), np.uint8)


def measure(side: int) -> dict:
    """Walks there and back over a slide, in a process of its own."""
    cells, params, plans = net()
    phases, size = Phases(cells, plans, params), (side, side)
    route = Route(plans, size, pixels)
    walked = forward_pass(phases, params, route)
    kept = {id(a): a.nbytes for a in jax.tree.leaves(walked.seams)}
    cotangent = np.ones_like(walked.cells)
    jax.block_until_ready(backward_pass(phases, params, route, walked, cotangent))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seam_bytes_counted": sum(kept.values()),
        "peak_rss_bytes": peak,
        "rest_bytes": peak - plans.seam_bytes(size),
    }


def rows(args: record.Arguments) -> Iterator[dict]:
    """Slides that are streamed, and a larger one whose seams are computed alone."""
    plans, none = net()[2], ("seam_bytes_counted", "peak_rss_bytes", "rest_bytes")
    for side in (*SIZES[: 2 if args.quick else None], COUNTED):
        row = {
            "trunk": f"resnet18, {WIDTH} wide",
            "driver": "host",
            "image_px": side,
            "tile_px": TILE_PX,
            "seam_bytes": plans.seam_bytes((side, side)),
        }
        run = side != COUNTED
        yield row | (in_own_process(measure, side) if run else dict.fromkeys(none))


if __name__ == "__main__":
    record.main(__doc__, rows)
