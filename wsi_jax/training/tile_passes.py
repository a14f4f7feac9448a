"""A net over a slide of any size, tile by tile from the host, and back for gradients.

The other driver of `ops.streaming`: pixels come from a reader and the slide is never in
memory. Between the forward and the backward pass only seams and the map are kept.

Tiles are computed in batches (`ops.tile_schedule`); what they leave to their neighbours
waits on the device (`training.tile_slots`).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num

from wsi_jax.ops.pixel_packing import pack, unpack
from wsi_jax.ops.stream_plan import StreamPlan
from wsi_jax.ops.stream_tile import TissueMask
from wsi_jax.ops.streaming import join_tiles
from wsi_jax.ops.tile_schedule import tile_batches
from wsi_jax.training.phases import Phases
from wsi_jax.training.tile_slots import Slots

# The indices of tiles in order -> their pixels [1 h w 3], blank beyond the slide.
Read = Callable[[Iterable[tuple[int, int]]], Iterator[np.ndarray]]

# Newest batches whose seams stay on the device, so that copying those of others to the
# host waits for no computation.
IN_FLIGHT = 2


class Route(NamedTuple):
    """The tiles of a slide that a pass computes.

    Attributes:
        plan: plan for batches of tiles of the shape that `read` gives.
        size_px: (height, width) of the slide.
        read: gives tiles in order; reads ahead, to keep the device busy.
        needed: which tiles to compute (`StreamPlan.tiles_for_cells`,
            `StreamPlan.tiles_on_tissue`); None for all.
        tissue: tissue beyond which windows read zeros, for phases compiled so.
        offload: keep the seams of finished batches in host memory.
    """

    plan: StreamPlan
    size_px: tuple[int, int]
    read: Read
    needed: Bool[np.ndarray, "rows columns"] | None = None
    tissue: TissueMask | None = None
    offload: bool = False

    def computed(self) -> Bool[np.ndarray, "rows columns"]:
        """The tiles to compute."""
        every = np.ones(self.plan.tiles(self.size_px), bool)
        return every if self.needed is None else every & np.asarray(self.needed)

    def batches(self) -> list[Int[np.ndarray, "n 2"]]:
        """(row, column) of the tiles of each batch, in order."""
        return tile_batches(self.computed(), self.plan.batch)

    def pixels(self, batches: Iterable) -> Iterator[Num[np.ndarray, "b y x d"]]:
        """The packed pixels of batches, blank where a batch is not full."""
        batches = list(batches)
        order = (tuple(map(int, tile)) for batch in batches for tile in batch)
        tiles = iter(self.read(order))
        for batch in batches:
            read = list(itertools.islice(tiles, len(batch)))
            blank = [np.zeros_like(read[0])] * (self.plan.batch - len(read))
            yield pack(np.concatenate([*read, *blank]), self.plan.packing)

    def tile_args(self, batch: Int[np.ndarray, "n 2"]) -> tuple:
        """Size of the slide and index of each tile, which nothing is compiled for."""
        size = tuple(np.full(self.plan.batch, n, np.int32) for n in self.size_px)
        return size, tuple(self._filled(batch).T)

    def tissue_at(self, batch: Int[np.ndarray, "n 2"]) -> TissueMask | None:
        """The tissue of each tile."""
        if self.tissue is None:
            return None
        return self.plan.tissue_for_tiles(self.tissue, self._filled(batch))

    def _filled(self, batch):
        """A batch with tiles of its own in the empty places."""
        return np.resize(batch, (self.plan.batch, 2)).astype(np.int32)


class Seams(NamedTuple):
    """What the neighbours of a batch of tiles left to it.

    Attributes:
        batch: (row, column) of each tile.
        buffers: from above, and from the left.
    """

    batch: Int[np.ndarray, "n 2"]
    buffers: tuple[list, list]


class ForwardPass(NamedTuple):
    """What a forward pass keeps.

    Attributes:
        cells: the map, in host memory; zeros where no tile was computed.
        seams: those of each batch, in order.
    """

    cells: Float[np.ndarray, "1 y x d"]
    seams: list[Seams]


def forward_pass(
    phases: Phases, params: Any, route: Route, keep: bool = True
) -> ForwardPass:
    """The map of a slide.

    Args:
        keep: keep the seams, for the backward pass.
    """
    plan, batches = route.plan, route.batches()
    slots = Slots(plan, route.computed(), phases.mesh)
    seams, blocks = [], []
    for batch, pixels in zip(batches, route.pixels(batches), strict=True):
        buffers = slots.take(batch, -1)
        *outgoing, cells = phases.forward(
            params, *route.tile_args(batch), *buffers, pixels, route.tissue_at(batch)
        )
        slots.put(batch, tuple(outgoing))
        blocks.append(cells)
        if keep:
            seams.append(Seams(batch, buffers))
        if route.offload and len(seams) > IN_FLIGHT:
            seams[-1 - IN_FLIGHT] = jax.device_get(seams[-1 - IN_FLIGHT])
    if route.offload:
        seams[-IN_FLIGHT:] = jax.device_get(seams[-IN_FLIGHT:])
    count = plan.tiles(route.size_px)
    grid = np.zeros((*count, 1, *plan.out.shape[1:]), plan.out.dtype)
    for batch, cells in zip(batches, blocks, strict=True):
        grid[tuple(batch.T)] = np.asarray(cells)[: len(batch), None]
    return ForwardPass(join_tiles(grid, plan.lag, plan.cells(route.size_px)), seams)


def backward_pass(
    phases: Phases,
    params: Any,
    route: Route,
    passed: ForwardPass,
    cotangent: Float[np.ndarray, "1 y x d"],
    grads: Any = None,
) -> Any:
    """The gradient of the parameters, from that of the map; every tile is read again.

    Args:
        route: as in `forward_pass`; its reader is asked for the last batch first.
        passed: holds its seams until it is deleted, here too.
        grads: the gradient is added to it; donated. None for zeros.
    """
    grads = jax.tree.map(jnp.zeros_like, params) if grads is None else grads
    slots = Slots(route.plan, route.computed(), phases.mesh)
    args = grads, params, route, passed, cotangent
    passes = _backwards(phases.backward, slots, *args)
    for _, result in passes:
        grads = result
    return grads


def pixel_gradients(
    phases: Phases,
    params: Any,
    route: Route,
    passed: ForwardPass,
    cotangent: Float[np.ndarray, "1 y x d"],
) -> Iterator[tuple[tuple[int, int], Float[np.ndarray, "1 h w 3"]]]:
    """The gradient of the pixels, tile by tile, the last batch first."""
    phase = lambda _, *args: phases.to_pixels(*args)
    slots = Slots(route.plan, route.computed(), phases.mesh)
    args = None, params, route, passed, cotangent
    for batch, pixels in _backwards(phase, slots, *args):
        each = unpack(np.asarray(pixels), route.plan.packing)
        for i, at in enumerate(batch):
            yield tuple(map(int, at)), each[i : i + 1]


def _backwards(phase, slots, grads, params, route, passed, cotangent):
    """Each batch, the last first, and the gradients once it is done."""
    plan = route.plan
    cotangent = np.asarray(cotangent, plan.out.dtype)
    blocks = _blocks(plan, plan.tiles(route.size_px), cotangent)
    last_first = passed.seams[::-1]
    pixels = route.pixels(seams.batch for seams in last_first)
    for (batch, buffers), tiles in zip(last_first, pixels, strict=True):
        cells = np.zeros(plan.out.shape, plan.out.dtype)
        cells[: len(batch)] = blocks[tuple(batch.T)]
        grads, *outgoing = phase(
            grads, (*slots.take(batch, 1), cells), params, *route.tile_args(batch),
            *buffers, tiles, route.tissue_at(batch),
        )  # fmt: skip
        slots.put(batch, tuple(outgoing))
        yield batch, grads


def _blocks(plan, count, cells):
    """The cells of each tile: the inverse of `join_tiles`."""
    _, y, x, d = cells.shape
    _, h, w, _ = plan.out.shape
    whole = np.zeros((count[0] * h, count[1] * w, d), cells.dtype)
    whole[plan.lag[0] : plan.lag[0] + y, plan.lag[1] : plan.lag[1] + x] = cells[0]
    return rearrange(whole, "(r i) (c j) d -> r c i j d", i=h, j=w)
