"""Plans of how a net streams over an image: tiles, lags, buffers and their sizes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jaxtyping import Array, Bool, Int, PyTree

from wsi_jax.ops.stream_tile import TileContext, TileMap, TissueMask
from wsi_jax.ops.trunk_ops import Ops
from wsi_jax.ops.windows import ReceptiveField, Window, map_length, receptive_field

# (params, map, ops) -> map
Net = Callable[[PyTree, Any, Ops], Any]


class StreamPlan(NamedTuple):
    """Plan of how a net streams in tiles of one shape.

    Attributes:
        tile: shape and dtype of a batch of tiles.
        axes: which of the two axes are split into tiles.
        out: shape and dtype of their cells.
        lag: rows and columns of cells by which the map is late.
        windows: windows between the image and the cells.
        rows: shapes and dtypes of the buffers for the tiles below.
        columns: shapes and dtypes of the buffers for the tiles on the right.
        fills: values of the buffers before the first tile: rows, columns.
        constant: which of the buffers no parameter has an effect on, as those of
            pixels: rows, columns.
        packing: side of the squares in which pixels are packed; 1 for none.
    """

    tile: jax.ShapeDtypeStruct
    axes: tuple[bool, bool]
    out: jax.ShapeDtypeStruct
    lag: tuple[int, int]
    windows: tuple[Window, ...]
    rows: list[jax.ShapeDtypeStruct]
    columns: list[jax.ShapeDtypeStruct]
    fills: tuple[list[float], list[float]]
    constant: tuple[list[bool], list[bool]]
    packing: int = 1

    def edge_buffers(self, axis: int) -> list[Array]:
        """Buffers above the first row of tiles (0), or left of the first column (1)."""
        shapes = (self.rows, self.columns)[axis]
        both = zip(shapes, self.fills[axis], strict=True)
        return [jnp.full(s.shape, fill, s.dtype) for s, fill in both]

    def times(self, n: int) -> "StreamPlan":
        """The plan for n times as many tiles at once."""
        more = lambda s: jax.ShapeDtypeStruct((n * s.shape[0], *s.shape[1:]), s.dtype)
        names = "tile", "out", "rows", "columns"
        grown = {name: jax.tree.map(more, getattr(self, name)) for name in names}
        return self._replace(**grown)

    @property
    def batch(self) -> int:
        """Number of tiles that are computed at once."""
        return self.tile.shape[0]

    @property
    def tile_px(self) -> tuple[int, int]:
        """(height, width) of a tile."""
        return self.tile.shape[1:3]

    @property
    def field(self) -> ReceptiveField:
        """Receptive field of a cell."""
        return receptive_field(self.windows)

    def cells(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image's map, in cells."""
        return tuple(map_length(n, self.windows) for n in size_px)

    def tiles(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tiles for an image, with blank ones that flush the lag."""
        blocks = self.out.shape[1:3]
        n = zip(self.cells(size_px), self.lag, blocks, self.axes, strict=True)
        return tuple(
            -(-(cells + lag) // block) if tiled else 1 for cells, lag, block, tiled in n
        )

    def seam_bytes(self, size_px: tuple[int, int]) -> int:
        """Bytes of all buffers of all tiles of an image, kept for its gradient."""
        each = sum(s.size * s.dtype.itemsize for s in (*self.rows, *self.columns))
        return int(np.prod(self.tiles(size_px))) * each // self.batch

    def tiles_for_cells(
        self, wanted: Bool[Array | np.ndarray, "y x"], size_px: tuple[int, int]
    ) -> Bool[Array | np.ndarray, "rows columns"]:
        """Tiles that the wanted cells depend on.

        From the first in a cell's receptive field to the one that outputs the cell.
        """
        stride, before, _ = self.field
        reach = []
        for axis, count in enumerate(self.tiles(size_px)):
            cell, side = np.arange(wanted.shape[axis]), self.tile_px[axis]
            first = np.maximum(cell * stride - before, 0) // side
            last = (cell + self.lag[axis]) // self.out.shape[1 + axis]
            tile = np.arange(count)
            reach.append((first[:, None] <= tile) & (tile <= last[:, None]))
        return _tiles_reached(wanted, reach)

    def tissue_for_tiles(
        self, tissue: TissueMask, tiles: Int[np.ndarray, "b 2"]
    ) -> TissueMask:
        """The parts of a tissue mask that some tiles meet, of one shape for all.

        Args:
            tiles: (row, column) of each.
        """
        starts, cells, side = [], [], tissue.cell_px
        for axis in (0, 1):
            reach = (self.lag[axis] + 1) * self.field.stride
            count = -(-(self.tile_px[axis] + reach) // side) + 1
            first = (tiles[:, axis] * self.tile_px[axis] - reach) // side
            inside = first[:, None] + np.arange(count)
            cells.append(np.clip(inside, 0, tissue.mask.shape[axis] - 1))
            starts.append(first.astype(np.int32))
        parts = np.asarray(tissue.mask)[cells[0][:, :, None], cells[1][:, None]]
        return TissueMask(parts, np.int32(side), tuple(starts))

    def tiles_on_tissue(
        self, tissue: TissueMask, size_px: tuple[int, int]
    ) -> Bool[Array | np.ndarray, "rows columns"]:
        """Tiles that compute any position on tissue, lag included."""
        stride, reach = self.field.stride, []
        for axis, count in enumerate(self.tiles(size_px)):
            first = np.arange(tissue.mask.shape[axis]) * tissue.cell_px
            late = first + tissue.cell_px - 1 + (self.lag[axis] + 1) * stride
            side, tile = self.tile_px[axis], np.arange(count)
            reach.append(
                (first[:, None] // side <= tile) & (tile <= late[:, None] // side)
            )
        return _tiles_reached(tissue.mask, reach)


def best_tile_side(plan: StreamPlan, size_px: int, about_px: int) -> int:
    """Side of a tile near `about_px` whose multiples least exceed an image.

    Within a fifth of `about_px`; tiles that flush the lag are counted.

    Args:
        size_px: size of the image, along one axis.
    """
    cells, stride = plan.cells((size_px, size_px))[0] + plan.lag[0], plan.field.stride
    about = about_px / stride
    sides = range(max(int(0.8 * about), 1), max(round(1.2 * about), 1) + 1)
    cost = lambda side: (-(-cells // side) * side, abs(side - about))
    return min(sides, key=cost) * stride


def plan_stream(
    net: Net,
    params: PyTree,
    image: Array | jax.ShapeDtypeStruct,
    tile_px: tuple[int, int] | int,
    packed: bool = False,
) -> StreamPlan:
    """Plans how a net streams over an image; nothing is computed.

    Args:
        params: parameters, or their shapes.
        image: [b h w 3], or its shape and dtype.
        tile_px: (height, width) of a tile, or the height of strips across the image.
        packed: whether pixels come in squares (`pixel_packing`), whose side is the
            stride of the first window.

    Raises:
        StreamError: the net cannot stream, or the tile does not divide by its stride.
    """
    axes = (True, not isinstance(tile_px, int))
    height, width = tile_px if axes[1] else (tile_px, image.shape[2])
    tile = jax.ShapeDtypeStruct((image.shape[0], height, width, 3), image.dtype)
    context = TileContext((0, 0), image.shape[1:3], axes)
    part, out, constant = _probe(net, params, tile, context)
    packing = part.windows[0].stride if packed and all(axes) and part.windows else 1
    if packing > 1:
        context = TileContext((0, 0), image.shape[1:3], axes)
        squares = packed_tile(tile, packing)
        part, out, constant = _probe(net, params, squares, context, packing)
    rows, columns = context.outgoing
    return StreamPlan(
        tile=tile,
        axes=axes,
        out=out,
        lag=part.lag,
        windows=part.windows,
        rows=rows,
        columns=columns,
        fills=context.fills,
        constant=constant,
        packing=packing,
    )


def net_windows(
    net: Net, params: PyTree, image: Array | jax.ShapeDtypeStruct
) -> tuple[Window, ...]:
    """The windows of a net between an image and its map; nothing is computed.

    Raises:
        StreamError: an operation looks at the whole map.
    """
    context = TileContext((0, 0), image.shape[1:3], (False, False))
    return _probe(net, params, image, context)[0].windows


def packed_tile(tile: jax.ShapeDtypeStruct, side: int) -> jax.ShapeDtypeStruct:
    """Shape of tiles whose pixels are packed in squares."""
    b, h, w, d = tile.shape
    return jax.ShapeDtypeStruct((b, h // side, w // side, side**2 * d), tile.dtype)


def _probe(net, params, tile, context, packing=1):
    """A net's TileMap on a tile, its shape, and which buffers are constant.

    The context's buffers become shapes.
    """
    parts = []

    def run(params, x):
        parts.append(net(params, TileMap(x, packing=packing), context.ops()))
        return context.outgoing, parts[0].x

    traced, shapes = jax.make_jaxpr(run, return_shape=True)(params, tile)
    constant = iter(_constant(traced.jaxpr, len(jax.tree.leaves(params))))
    context.outgoing, out = shapes
    return parts[0], out, tuple([next(constant) for _ in s] for s in context.outgoing)


def _constant(jaxpr, n):
    """Which results of a jaxpr its first n arguments have no gradient through."""
    moved = set(jaxpr.invars[:n])
    for eqn in jaxpr.eqns:
        read = (v for v in eqn.invars if not isinstance(v, Literal))
        if eqn.primitive.name != "stop_gradient" and any(v in moved for v in read):
            moved.update(eqn.outvars)
    return [isinstance(v, Literal) or v not in moved for v in jaxpr.outvars]


def _tiles_reached(cells, reach):
    """Tiles that any of the set cells reaches, by reach along rows and columns."""
    rows, columns = (a.astype(np.float32) for a in reach)
    return rows.T @ cells.astype(np.float32) @ columns > 0
