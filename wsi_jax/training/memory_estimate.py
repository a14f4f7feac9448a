"""Memory of a streamed step, estimated before it begins, and whether it fits."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from wsi_jax.ops.stream_plan import StreamPlan
from wsi_jax.training.phases import Phases
from wsi_jax.training.tile_passes import IN_FLIGHT, Route
from wsi_jax.training.tile_slots import slot_bytes

# Parameters, their gradient, AdamW's two moments, and a gradient that accumulates.
COPIES = 5


class TileError(ValueError):
    """A tile that the device has no room for; the message names one that fits."""


class Memory(NamedTuple):
    """Bytes of the device that a step takes.

    Attributes:
        tile: temporaries of the tiles of a batch in the backward pass, compiled.
        seams: what tiles leave to their neighbours, and the map.
        params: parameters, their gradient and moments.
    """

    tile: int
    seams: int
    params: int

    @property
    def total(self) -> int:
        return sum(self)


def memory_estimate(
    phases: Phases,
    route: Route,
    replan: Callable[[tuple[int, int]], StreamPlan],
    params: Any,
    flag: str,
    frozen_steps: int = 0,
    room: int | None = None,
) -> str:
    """Geometry, work and memory of a step on a slide, as text.

    Args:
        route: the slide of which most is computed.
        replan: (tile_px) -> the plan for tiles of another shape.
        flag: flag of the net's config.
        frozen_steps: steps without a backward pass.
        room: bytes of the device; None to ask it.

    Raises:
        TileError: the device has too little memory for it.
    """
    plan, size_px, count = route.plan, route.size_px, int(route.computed().sum())
    batches = len(route.batches())
    phases.compile()
    memory = _memory(route, plan, params, temporaries(phases))
    room = device_bytes() if room is None else room
    if room and memory.total > room:
        raise TileError(_too_large(memory, route, replan, params, flag, room))
    stride, field, lag = plan.field.stride, plan.field.size, plan.lag[0]
    down, across = plan.tiles(size_px)
    lines = [
        f"streaming: a cell every {stride} px sees {field} px; the map runs "
        f"{lag} cells ({lag * stride} px) late",
        f"tiles of {max(plan.tile_px):,} px: {count:,} of {down} x {across} on the "
        f"slide that takes most, {size_px[0]:,} x {size_px[1]:,} px"
        + (f", in {batches:,} batches of {plan.batch}" if plan.batch > 1 else ""),
        f"a step there: {batches * sum(phases.flops):.3g} FLOPs; about "
        f"{_gb(memory.total)} ({_parts(memory)})"
        + (f" of {_gb(room)}" if room else ""),
    ]
    if seconds := phases.compiler_seconds:
        lines.append(f"the compiler reckons with {batches * seconds:.3g} s for it")
    if frozen_steps:
        lines.append(f"the trunk is frozen for the first {frozen_steps:,} steps")
    return "\n".join(lines)


def temporaries(phases: Phases) -> int:
    """Bytes that XLA sets aside for a batch of tiles in the backward pass."""
    return phases.backward.memory_analysis().temp_size_in_bytes


def device_bytes() -> int | None:
    """Memory of the first device, of a CPU its share of the machine's; None where
    unknown."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        every = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return every // jax.local_device_count()
    return None


def _memory(route, plan, params, tile):
    """Memory with tiles of `plan`, of which the route's share is computed."""
    sizes = [np.prod(np.shape(a)) * a.dtype.itemsize for a in jax.tree.leaves(params)]
    every, share = plan.tiles(route.size_px), route.computed().mean()
    tiles = int(np.prod(every))
    cells = plan.out.size * plan.out.dtype.itemsize * tiles // plan.batch
    seams = int(share * plan.seam_bytes(route.size_px))
    if route.offload:
        on_device = (IN_FLIGHT + 1) * plan.batch
        seams = min(seams, plan.seam_bytes(route.size_px) * on_device // tiles)
    kept = int(share * cells) + seams + slot_bytes(plan, every)
    return Memory(int(tile), kept, COPIES * int(sum(sizes)))


def _too_large(memory, route, replan, params, flag, room):
    """The error, with the largest tile that fits: temporaries grow with its area.

    Smaller tiles have smaller temporaries and more seams: the mend may lie either way.
    """
    (y, x), plan = route.size_px, route.plan
    side, stride = max(plan.tile_px), plan.field.stride
    message = (
        f"{flag}.tile_px={side} takes about {_gb(memory.total)} ({_parts(memory)}) on "
        f"a slide of {y:,} x {x:,} px; the device has {_gb(room)}"
    )
    sides = {max(int(side * 2**k) // stride, 1) * stride for k in range(-8, 5)}
    totals = {}
    for other in sorted(sides - {side}, reverse=True):
        tile = memory.tile * (other / side) ** 2
        again = _memory(route, replan((other, other)), params, tile)
        totals[other] = again.total
        if totals[other] <= room:
            return f"{message}. Set {flag}.tile_px={other}: about {_gb(totals[other])}"
    mends = [f"compute in bfloat16 ({flag}.trunk.dtype=bfloat16)"]
    if plan.batch > 1:
        mends.insert(0, f"compute fewer tiles at once ({flag}.batch=1)")
    if not route.offload:
        mends.insert(0, f"keep the seams in host memory ({flag}.offload=True)")
    return (
        f"{message}, and no tile fits: {_gb(min(totals.values()))} at least; "
        f"{', '.join(mends)}, or read the slides at a coarser --config.grid.mpp"
    )


def _parts(memory):
    names = zip(("tiles at once", "seams and map", "parameters"), memory, strict=True)
    return ", ".join(f"{name} {_gb(size)}" for name, size in names)


def _gb(size):
    return f"{size / 1e9:,.2g} GB" if size < 1e10 else f"{size / 1e9:,.0f} GB"
