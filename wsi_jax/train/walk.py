"""A net over a slide of any size, tile by tile from the host, and back for gradients.

The other driver of `ops.streaming`: pixels come from a reader and the slide is never in
memory. Between the way there and the way back only the seams are kept, and the map.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from wsi_jax.ops.streaming import Plan, uncut
from wsi_jax.train.compile import Phases

# The indices of tiles in order -> their pixels [b h w 3], blank beyond the slide.
Read = Callable[[Iterable[tuple[int, int]]], Iterator[np.ndarray]]


class Walked(NamedTuple):
    """What is kept on the way there.

    Attributes:
        cells: the map.
        seams: of each tile that was computed, what its neighbours had left to it.
    """

    cells: Float[Array, "b y x d"]
    seams: dict[tuple[int, int], tuple[Any, Any]]


def walk(
    phases: Phases,
    plan: Plan,
    params: Any,
    size_px: tuple[int, int],
    read: Read,
    needed: Bool[np.ndarray, "rows columns"] | None = None,
    keep: bool = True,
) -> Walked:
    """The map of a slide.

    Args:
        phases: compiled.
        plan: for tiles of the shape that `read` gives.
        params: of the net.
        size_px: (height, width) of the slide.
        read: gives tiles in order; read ahead in it, to keep the device busy.
        needed: which tiles to compute (`Plan.needed`); None for all.
        keep: the seams, for the way back.
    """
    down, across = plan.tiles(size_px)
    here = np.ones((down, across), bool) if needed is None else np.asarray(needed)
    tiles = read(_order(here))
    size = _traced(size_px)
    blank = jax.tree.map(jnp.zeros_like, (plan.rows, plan.columns, plan.out))
    above, blocks, seams = [plan.edge(0)] * across, [], {}
    for r in range(down):
        below, columns = [], plan.edge(1)
        for c in range(across):
            rows, left, out = blank
            if here[r, c]:
                if keep:
                    seams[r, c] = above[c], columns
                rows, left, out = phases.forward(
                    params, size, _traced((r, c)), above[c], columns, next(tiles)
                )
            below.append(rows)
            blocks.append(out)
            columns = left
        above = below
    grid = jnp.stack(blocks).reshape(down, across, *plan.out.shape)
    return Walked(uncut(grid, plan.lag, plan.cells(size_px)), seams)


def walk_back(
    phases: Phases,
    plan: Plan,
    params: Any,
    size_px: tuple[int, int],
    read: Read,
    walked: Walked,
    cotangent: Float[Array, "b y x d"],
) -> Any:
    """The gradient of the parameters, from that of the map; every tile is read again.

    Args:
        phases: as in `walk`.
        plan: as in `walk`.
        params: as in `walk`.
        size_px: as in `walk`.
        read: as in `walk`; asked for the tiles backwards.
        walked: what `walk` kept.
        cotangent: of `walked.cells`.
    """
    down, across = plan.tiles(size_px)
    shape = down, across, *plan.out.shape
    spread = jax.linear_transpose(
        lambda grid: uncut(grid, plan.lag, plan.cells(size_px)),
        jax.ShapeDtypeStruct(shape, plan.out.dtype),
    )
    (blocks,) = spread(cotangent.astype(plan.out.dtype))
    here = np.zeros((down, across), bool)
    for at in walked.seams:
        here[at] = True
    tiles = read(reversed(_order(here)))
    size, grads = _traced(size_px), jax.tree.map(jnp.zeros_like, params)
    no_rows, no_columns = jax.tree.map(jnp.zeros_like, (plan.rows, plan.columns))
    below = [no_rows] * across
    for r in reversed(range(down)):
        above, columns = [no_rows] * across, no_columns
        for c in reversed(range(across)):
            if not here[r, c]:
                columns = no_columns
                continue
            grads, above[c], columns = phases.backward(
                grads,
                params,
                size,
                _traced((r, c)),
                *walked.seams[r, c],
                next(tiles),
                (below[c], columns, blocks[r, c]),
            )
        below = above
    return grads


def _order(here):
    return [(int(r), int(c)) for r, c in np.argwhere(here)]


def _traced(pair):
    """Numbers that a compiled function does not depend on."""
    return tuple(map(jnp.int32, pair))
