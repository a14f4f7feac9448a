"""A net over a slide of any size, tile by tile from the host, and back for gradients.

The other driver of `ops.streaming`: pixels come from a reader and the slide is never in
memory. Between the forward and the backward pass only seams and the map are kept.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float

from wsi_jax.ops.stream_plan import StreamPlan
from wsi_jax.ops.stream_tile import TissueMask
from wsi_jax.ops.streaming import join_tiles
from wsi_jax.training.compile import Phases

# The indices of tiles in order -> their pixels [b h w 3], blank beyond the slide.
Read = Callable[[Iterable[tuple[int, int]]], Iterator[np.ndarray]]


class Route(NamedTuple):
    """The tiles of a slide that a pass computes.

    Attributes:
        plan: plan for tiles of the shape that `read` gives.
        size_px: (height, width) of the slide.
        read: gives tiles in order; reads ahead, to keep the device busy.
        needed: which tiles to compute (`StreamPlan.tiles_for_cells`,
            `StreamPlan.tiles_on_tissue`); None for all.
        tissue: tissue beyond which windows read zeros, for phases compiled so.
        offload: keep the seams of finished rows in host memory.
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

    def tile_args(self, at: tuple[int, int]) -> tuple:
        """Size of the slide and index of a tile, which nothing is compiled for."""
        return tuple(map(np.int32, self.size_px)), tuple(map(np.int32, at))

    def tissue_at(self, at: tuple[int, int]) -> TissueMask | None:
        """The tissue of a tile."""
        return (
            None if self.tissue is None else self.plan.tissue_for_tile(self.tissue, at)
        )


class ForwardPass(NamedTuple):
    """What a forward pass keeps.

    Attributes:
        cells: the map, in host memory; zeros where no tile was computed.
        seams: for each computed tile, what its neighbours left to it.
    """

    cells: Float[np.ndarray, "b y x d"]
    seams: dict[tuple[int, int], tuple[Any, Any]]


def forward_pass(
    phases: Phases, params: Any, route: Route, keep: bool = True
) -> ForwardPass:
    """The map of a slide.

    Args:
        keep: keep the seams, for the backward pass.
    """
    plan, computed = route.plan, route.computed()
    down, across = computed.shape
    tiles = iter(route.read(_order(computed)))
    no_rows, no_columns = jax.tree.map(jnp.zeros_like, (plan.rows, plan.columns))
    above, first_columns = [plan.edge_buffers(0)] * across, plan.edge_buffers(1)
    seams, grid = {}, np.zeros((down, across, *plan.out.shape), plan.out.dtype)
    blocks = {}
    for r in range(down):
        below, columns = [], first_columns
        for c in range(across):
            rows, left = no_rows, no_columns
            if computed[r, c]:
                if keep:
                    seams[r, c] = above[c], columns
                rows, left, blocks[r, c] = phases.forward(
                    params, *route.tile_args((r, c)), above[c], columns, next(tiles),
                    route.tissue_at((r, c)),
                )  # fmt: skip
            below.append(rows)
            columns = left
        above = below
        if route.offload:
            row = {at: seams[at] for at in seams if at[0] == r}
            seams |= jax.device_get(row)
    for at, block in blocks.items():
        grid[at] = block
    return ForwardPass(join_tiles(grid, plan.lag, plan.cells(route.size_px)), seams)


def backward_pass(
    phases: Phases,
    params: Any,
    route: Route,
    passed: ForwardPass,
    cotangent: Float[np.ndarray, "b y x d"],
    grads: Any = None,
) -> Any:
    """The gradient of the parameters, from that of the map; every tile is read again.

    Args:
        route: as in `forward_pass`; its reader is asked for the tiles backwards.
        grads: the gradient is added to it; donated. None for zeros.
    """
    grads = jax.tree.map(jnp.zeros_like, params) if grads is None else grads
    passes = _backwards(phases.backward, grads, params, route, passed, cotangent)
    for _, result in passes:
        grads = result
    return grads


def pixel_gradients(
    phases: Phases,
    params: Any,
    route: Route,
    passed: ForwardPass,
    cotangent: Float[np.ndarray, "b y x d"],
) -> Iterator[tuple[tuple[int, int], Float[np.ndarray, "b h w 3"]]]:
    """The gradient of the pixels, tile by tile, the last tile first."""
    pixels = jnp.zeros(route.plan.tile.shape, phases.wide)
    tiles = _backwards(phases.to_pixels, pixels, params, route, passed, cotangent)
    for at, pixels in tiles:
        yield at, np.array(pixels)  # a copy: the next tile takes the place of this


def _backwards(phase, grads, params, route, passed, cotangent):
    """Each tile's index, the last first, and the gradients once it is done."""
    plan, (down, across) = route.plan, route.plan.tiles(route.size_px)
    blocks = _blocks(plan, (down, across), np.asarray(cotangent, plan.out.dtype))
    computed = np.zeros((down, across), bool)
    for at in passed.seams:
        computed[at] = True
    tiles = iter(route.read(_order(computed)[::-1]))
    no_rows, no_columns = jax.tree.map(jnp.zeros_like, (plan.rows, plan.columns))
    below = [no_rows] * across
    for r in reversed(range(down)):
        above, columns = [no_rows] * across, no_columns
        for c in reversed(range(across)):
            if not computed[r, c]:
                columns = no_columns
                continue
            ends = below[c], columns, blocks[r, c]
            grads, above[c], columns = phase(
                grads, ends, params, *route.tile_args((r, c)), *passed.seams[r, c],
                next(tiles), route.tissue_at((r, c)),
            )  # fmt: skip
            yield (r, c), grads
        below = above


def _blocks(plan, count, cells):
    """The cells of each tile: the inverse of `join_tiles`."""
    b, y, x, d = cells.shape
    _, h, w, _ = plan.out.shape
    whole = np.zeros((b, count[0] * h, count[1] * w, d), cells.dtype)
    whole[:, plan.lag[0] : plan.lag[0] + y, plan.lag[1] : plan.lag[1] + x] = cells
    tiles = "b (r i) (c j) d -> r c b i j d"
    return np.ascontiguousarray(rearrange(whole, tiles, i=h, j=w))


def _order(computed):
    return [(int(r), int(c)) for r, c in np.argwhere(computed)]
