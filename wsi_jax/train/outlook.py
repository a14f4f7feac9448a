"""What a streamed step will take, told before it begins, and whether it fits."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from wsi_jax.ops.streaming import Plan
from wsi_jax.train.compile import Phases
from wsi_jax.train.flops import count_flops

# Parameters, their gradient, and what AdamW keeps of them.
COPIES = 4


class TileError(ValueError):
    """A tile that the device has no room for; the message names one that fits."""


class Memory(NamedTuple):
    """Bytes that a step takes of the device.

    Attributes:
        tile: temporaries of one tile on its way back, compiled.
        seams: what all tiles leave to their neighbours.
        params: with their gradient and moments.
    """

    tile: int
    seams: int
    params: int

    @property
    def total(self) -> int:
        return sum(self)


def outlook(
    phases: Phases,
    plan: Plan,
    replan: Callable[[tuple[int, int]], Plan],
    params: Any,
    size_px: tuple[int, int],
    flag: str,
    offload: bool = False,
    room: int | None = None,
) -> str:
    """Geometry, work and memory of a step on a slide, in words.

    Args:
        phases: for the plan.
        plan: of the net.
        replan: the plan for tiles of another shape.
        params: of the net, or their shapes.
        size_px: (height, width) of the largest slide.
        flag: that sets the tile's side.
        offload: whether seams go to host memory.
        room: bytes of the device; None to ask it.

    Raises:
        TileError: the device has too little memory for it.
    """
    side = max(plan.tile_px)
    memory = _memory(plan, params, size_px, temporaries(phases), offload)
    room = device_bytes() if room is None else room
    if room and memory.total > room:
        raise TileError(
            _too_large(memory, plan, replan, params, size_px, flag, room, offload)
        )
    stride, field, lag = plan.field.stride, plan.field.size, plan.lag[0]
    down, across = plan.tiles(size_px)
    covered = down * across * plan.tile_px[0] * plan.tile_px[1]
    forward, backward = (
        count_flops(f, *s) for f, s in (phases.forward_call, phases.backward_call)
    )
    every = down * across * (forward + backward)
    return "\n".join(
        (
            f"streaming: a cell every {stride} px sees {field} px; the map runs "
            f"{lag} cells ({lag * stride} px) late",
            f"tiles of {side:,} px: {down} x {across} on the largest slide, "
            f"{size_px[0]:,} x {size_px[1]:,} px, which is "
            f"{covered / np.prod(size_px, dtype=float):.2f}x its area",
            f"a step there, all tiles: {every:.3g} FLOPs; about "
            f"{_gb(memory.total)} ({_parts(memory)})"
            + (f" of {_gb(room)}" if room else ""),
        )
    )


def temporaries(phases: Phases) -> int:
    """Bytes that XLA sets aside for one tile on its way back."""
    return phases.backward.memory_analysis().temp_size_in_bytes


def device_bytes() -> int | None:
    """Memory of the first device, of a CPU the machine's; None where nobody tells."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _memory(plan, params, size_px, tile, offload):
    sizes = [np.prod(np.shape(a)) * a.dtype.itemsize for a in jax.tree.leaves(params)]
    seams = 0 if offload else plan.seam_bytes(size_px)
    return Memory(int(tile), seams, COPIES * int(sum(sizes)))


def _too_large(memory, plan, replan, params, size_px, flag, room, offload):
    """Names the largest tile that fits: temporaries go with its area, seams are known.

    Smaller tiles have smaller temporaries and more seams: the mend may lie either way.
    """
    side, stride = max(plan.tile_px), plan.field.stride
    said = (
        f"{flag}={side} takes about {_gb(memory.total)} ({_parts(memory)}) on a slide "
        f"of {size_px[0]:,} x {size_px[1]:,} px; the device has {_gb(room)}"
    )
    sides = {max(int(side * 2**k) // stride, 1) * stride for k in range(-8, 5)}
    found = {}
    for other in sorted(sides - {side}, reverse=True):
        tile = memory.tile * (other / side) ** 2
        again = replan((other, other))
        found[other] = _memory(again, params, size_px, tile, offload).total
        if found[other] <= room:
            return f"{said}. Set {flag}={other}: about {_gb(found[other])}"
    return (
        f"{said}, and no tile fits: {_gb(min(found.values()))} at least. Keep the "
        "seams in host memory (--config.method.offload=True), compute in bfloat16, or "
        "read the slides at a coarser --config.grid.mpp"
    )


def _parts(memory):
    names = zip(("one tile", "seams", "parameters"), memory, strict=True)
    return ", ".join(f"{name} {_gb(size)}" for name, size in names)


def _gb(size):
    return f"{size / 1e9:,.2g} GB" if size < 1e10 else f"{size / 1e9:,.0f} GB"
