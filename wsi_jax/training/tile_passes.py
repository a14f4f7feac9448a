"""A net over a slide of any size, tile by tile from the host, and back for gradients.

The other driver of `ops.streaming`: pixels come from a reader and the slide is never in
memory. Between the way there and the way back only the seams are kept, and the map.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from wsi_jax.ops.stream_plan import StreamPlan
from wsi_jax.ops.stream_tile import TissueMask
from wsi_jax.ops.streaming import join_tiles
from wsi_jax.training.compile import Phases

# The indices of tiles in order -> their pixels [b h w 3], blank beyond the slide.
Read = Callable[[Iterable[tuple[int, int]]], Iterator[np.ndarray]]


class Route(NamedTuple):
    """Which slide, and which way through it.

    Attributes:
        plan: for tiles of the shape that `read` gives.
        size_px: (height, width) of the slide.
        read: gives tiles in order; reads ahead in it, to keep the device busy.
        needed: which tiles to compute (`StreamPlan.tiles_for_cells`,
            `StreamPlan.tiles_on_tissue`); None for all.
        tissue: beyond which windows find zeros, for phases compiled so.
        offload: keep the seams of finished rows in host memory.
    """

    plan: StreamPlan
    size_px: tuple[int, int]
    read: Read
    needed: Bool[np.ndarray, "rows columns"] | None = None
    tissue: TissueMask | None = None
    offload: bool = False

    def here(self) -> Bool[np.ndarray, "rows columns"]:
        """The tiles to compute."""
        every = np.ones(self.plan.tiles(self.size_px), bool)
        return every if self.needed is None else every & np.asarray(self.needed)


class ForwardPass(NamedTuple):
    """What is kept on the way there.

    Attributes:
        cells: the map, in host memory; zeros where no tile was computed.
        seams: of each tile that was computed, what its neighbours had left to it.
    """

    cells: Float[np.ndarray, "b y x d"]
    seams: dict[tuple[int, int], tuple[Any, Any]]


def forward_pass(
    phases: Phases, params: Any, route: Route, keep: bool = True
) -> ForwardPass:
    """The map of a slide.

    Args:
        phases: compiled for the plan of the route.
        params: of the net.
        route: through the slide.
        keep: the seams, for the way back.
    """
    plan, here = route.plan, route.here()
    down, across = here.shape
    tiles = iter(route.read(_order(here)))
    blank = jax.tree.map(jnp.zeros_like, (plan.rows, plan.columns))
    edges = plan.edge_buffers(0), plan.edge_buffers(1)
    above, found, seams = [edges[0]] * across, {}, {}
    for r in range(down):
        below, columns = [], edges[1]
        for c in range(across):
            rows, left = blank
            if here[r, c]:
                if keep:
                    seams[r, c] = above[c], columns
                rows, left, found[r, c] = phases.forward(
                    params, *_where(route, (r, c)), above[c], columns,
                    *_what(route, (r, c), next(tiles)),
                )  # fmt: skip
            below.append(rows)
            columns = left
        above = below
        if route.offload:
            row = {at: seams[at] for at in seams if at[0] == r}
            seams |= jax.device_get(row)
    grid = np.zeros((down, across, *plan.out.shape), plan.out.dtype)
    for at, block in found.items():
        grid[at] = block
    return ForwardPass(join_tiles(grid, plan.lag, plan.cells(route.size_px)), seams)


def backward_pass(
    phases: Phases,
    params: Any,
    route: Route,
    walked: ForwardPass,
    cotangent: Float[np.ndarray, "b y x d"],
    grads: Any = None,
) -> Any:
    """The gradient of the parameters, from that of the map; every tile is read again.

    Args:
        phases: as in `forward_pass`.
        params: as in `forward_pass`.
        route: as in `forward_pass`; its reader is asked for the tiles backwards.
        walked: what `forward_pass` kept.
        cotangent: of `walked.cells`.
        grads: to which the gradient is added; donated. None for zeros.
    """
    grads = jax.tree.map(jnp.zeros_like, params) if grads is None else grads
    way = _backwards(phases.backward, grads, params, route, walked, cotangent)
    for _, found in way:
        grads = found
    return grads


def pixel_gradients(
    phases: Phases,
    params: Any,
    route: Route,
    walked: ForwardPass,
    cotangent: Float[np.ndarray, "b y x d"],
) -> Iterator[tuple[tuple[int, int], Float[np.ndarray, "b h w 3"]]]:
    """The gradient of the pixels, tile by tile, the last tile first.

    Args:
        phases: as in `forward_pass`.
        params: as in `forward_pass`.
        route: as in `backward_pass`.
        walked: what `forward_pass` kept.
        cotangent: of `walked.cells`.
    """
    pixels = jnp.zeros(route.plan.tile.shape, phases.wide)
    way = _backwards(phases.to_pixels, pixels, params, route, walked, cotangent)
    for at, pixels in way:
        yield at, np.array(pixels)  # a copy: the next tile takes the place of this


def _backwards(phase, grads, params, route, walked, cotangent):
    """Each tile's index, the last first, and the gradients once it is done."""
    plan, (down, across) = route.plan, route.plan.tiles(route.size_px)
    blocks = _blocks(plan, (down, across), np.asarray(cotangent, plan.out.dtype))
    here = np.zeros((down, across), bool)
    for at in walked.seams:
        here[at] = True
    tiles = iter(route.read(_order(here)[::-1]))
    no_rows, no_columns = jax.tree.map(jnp.zeros_like, (plan.rows, plan.columns))
    below = [no_rows] * across
    for r in reversed(range(down)):
        above, columns = [no_rows] * across, no_columns
        for c in reversed(range(across)):
            if not here[r, c]:
                columns = no_columns
                continue
            ends = below[c], columns, blocks[r, c]
            grads, above[c], columns = phase(
                grads, ends, params, *_where(route, (r, c)), *walked.seams[r, c],
                *_what(route, (r, c), next(tiles)),
            )  # fmt: skip
            yield (r, c), grads
        below = above


def _blocks(plan, count, cells):
    """The cells of each tile: `join_tiles`, backwards."""
    b, y, x, d = cells.shape
    _, h, w, _ = plan.out.shape
    whole = np.zeros((b, count[0] * h, count[1] * w, d), cells.dtype)
    whole[:, plan.lag[0] : plan.lag[0] + y, plan.lag[1] : plan.lag[1] + x] = cells
    whole = whole.reshape(b, count[0], h, count[1], w, d)
    return np.ascontiguousarray(whole.transpose(1, 3, 0, 2, 4, 5))


def _order(here):
    return [(int(r), int(c)) for r, c in np.argwhere(here)]


def _where(route, at):
    """Of the slide and of the tile, as numbers that nothing is compiled for."""
    return tuple(map(np.int32, route.size_px)), tuple(map(np.int32, at))


def _what(route, at, tile):
    """The pixels of a tile, and its tissue."""
    return tile, None if route.tissue is None else route.plan.tissue_for_tile(
        route.tissue, at
    )
