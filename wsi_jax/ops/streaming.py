"""A convolutional net over an image larger than memory: exact, and nothing twice.

The image goes by tile by tile, rows of tiles from the top, each from the left. A window
(a convolution or a pooling) of size k and stride s needs, above and left of a tile, the
last k - s rows and columns of what went by before. So each window keeps these: `rows`,
one buffer for each column of tiles, and `columns`, one for the row that is going by,
taken after the rows were put on top so that the corner is right.

Symmetric padding needs what lies ahead. Instead of reading ahead a stream runs late: a
map lags by a fixed number of rows and columns, a skip connection is held back until the
branch that it joins arrives, and behind the image some blank tiles flush the lag out.
Before each window all that lies outside the true map is overwritten, from the tile's
index and the lag; that is the padding. So one compiled tile serves images of any size.

Gradients are those of autodiff: the loop over tiles reversed, the cotangents of the
buffers flowing back over the seams, every tile computed once more.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Num, PyTree

from wsi_jax.ops.stream_tile import (
    Field,
    Piece,
    TileContext,
    Tissue,
    Window,
    field,
    length,
)
from wsi_jax.ops.trunk_ops import Ops

# (params, map, ops) -> map
Net = Callable[[PyTree, Any, Ops], Any]


class Plan(NamedTuple):
    """How a net streams in tiles of one shape.

    Attributes:
        tile: shape and dtype of one.
        axes: which of the two are cut into tiles.
        out: shape and dtype of what one tile gives.
        lag: rows and columns of cells by which it runs late.
        windows: from the image to the cells.
        rows: shapes and dtypes of what a tile leaves to the one below.
        columns: of what it leaves to the one on the right.
        fills: what stands there before the first tile: of rows, of columns.
    """

    tile: jax.ShapeDtypeStruct
    axes: tuple[bool, bool]
    out: jax.ShapeDtypeStruct
    lag: tuple[int, int]
    windows: tuple[Window, ...]
    rows: list[jax.ShapeDtypeStruct]
    columns: list[jax.ShapeDtypeStruct]
    fills: tuple[list[float], list[float]]

    def edge(self, axis: int) -> list[Array]:
        """What stands above the first row of tiles (0), or left of the first column."""
        shapes = (self.rows, self.columns)[axis]
        both = zip(shapes, self.fills[axis], strict=True)
        return [jnp.full(s.shape, fill, s.dtype) for s, fill in both]

    @property
    def tile_px(self) -> tuple[int, int]:
        """(height, width) of a tile."""
        return self.tile.shape[1:3]

    @property
    def field(self) -> Field:
        """Of a cell."""
        return field(self.windows)

    def cells(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in cells of an image's map."""
        return tuple(length(n, self.windows) for n in size_px)

    def tiles(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tiles that an image takes, flushing included."""
        blocks = self.out.shape[1:3]
        n = zip(self.cells(size_px), self.lag, blocks, self.axes, strict=True)
        return tuple(
            -(-(cells + lag) // block) if cut else 1 for cells, lag, block, cut in n
        )

    def seam_bytes(self, size_px: tuple[int, int]) -> int:
        """Of what autodiff keeps: all that each tile left to its neighbours."""
        count = np.prod(self.tiles(size_px))
        sizes = [s.size * s.dtype.itemsize for s in (*self.rows, *self.columns)]
        return int(count) * sum(sizes)

    def walked_bytes(self, size_px: tuple[int, int]) -> int:
        """Of what a loop from the host keeps: the same, but blanks at the edge once."""
        down, across = self.tiles(size_px)
        rows, columns = (
            sum(s.size * s.dtype.itemsize for s in side)
            for side in (self.rows, self.columns)
        )
        return rows * ((down - 1) * across + 1) + columns * (down * (across - 1) + 1)

    def needed(
        self, wanted: Bool[Array | np.ndarray, "y x"], size_px: tuple[int, int]
    ) -> Bool[Array | np.ndarray, "rows columns"]:
        """The tiles without which some wanted cell would be wrong.

        Those that its receptive field meets, and on to the one with which it arrives.
        A tile left out leaves blanks behind, but no cell that sees them is wanted.
        """
        stride, before, _ = self.field
        reach = []
        for axis, count in enumerate(self.tiles(size_px)):
            cell, side = np.arange(wanted.shape[axis]), self.tile_px[axis]
            first = np.maximum(cell * stride - before, 0) // side
            last = (cell + self.lag[axis]) // self.out.shape[1 + axis]
            tile = np.arange(count)
            reach.append((first[:, None] <= tile) & (tile <= last[:, None]))
        return _any_cell(wanted, reach)

    def part(self, tissue: Tissue, at: tuple[int, int]) -> Tissue:
        """What a tile meets of the tissue: of one shape, wherever the tile is."""
        starts, part, side = [], tissue.mask, tissue.cell_px
        for axis in (0, 1):
            reach = (self.lag[axis] + 1) * self.field.stride
            count = -(-(self.tile_px[axis] + reach) // side) + 1
            first = (at[axis] * self.tile_px[axis] - reach) // side
            cells = np.arange(first, first + count)
            inside = np.clip(cells, 0, part.shape[axis] - 1)
            part = np.take(part, inside, axis)
            starts.append(first)
        return Tissue(part, np.int32(side), tuple(map(np.int32, starts)))

    def touched(
        self, tissue: Tissue, size_px: tuple[int, int]
    ) -> Bool[Array | np.ndarray, "rows columns"]:
        """The tiles through which any tissue goes, early or late."""
        stride, reach = self.field.stride, []
        for axis, count in enumerate(self.tiles(size_px)):
            first = np.arange(tissue.mask.shape[axis]) * tissue.cell_px
            late = first + tissue.cell_px - 1 + (self.lag[axis] + 1) * stride
            side, tile = self.tile_px[axis], np.arange(count)
            reach.append(
                (first[:, None] // side <= tile) & (tile <= late[:, None] // side)
            )
        return _any_cell(tissue.mask, reach)


def fitting(plan: Plan, size_px: int, about_px: int) -> int:
    """The side of a tile near `about_px` whose multiples least exceed an image.

    Within a fifth of `about_px`; flushing is counted.

    Args:
        plan: of the net, for tiles of any side.
        size_px: of the image, along one axis.
        about_px: wished for.
    """
    cells, stride = plan.cells((size_px, size_px))[0] + plan.lag[0], plan.field.stride
    about = about_px / stride
    sides = range(max(int(0.8 * about), 1), max(round(1.2 * about), 1) + 1)
    taken = lambda side: (-(-cells // side) * side, abs(side - about))
    return min(sides, key=taken) * stride


def plan(
    net: Net,
    params: PyTree,
    image: Array | jax.ShapeDtypeStruct,
    tile_px: tuple[int, int] | int,
) -> Plan:
    """How a net streams over an image; nothing is computed.

    Args:
        net: (params, map, ops) -> map.
        params: or their shapes.
        image: [b h w 3], or its shape and dtype.
        tile_px: (height, width) of a tile, or the height of strips across the image.

    Raises:
        StreamError: the net cannot stream, or the tile does not divide by its stride.
    """
    axes = (True, not isinstance(tile_px, int))
    height, width = tile_px if axes[1] else (tile_px, image.shape[2])
    found = {}

    def probe(params, x):
        passage = TileContext((0, 0), image.shape[1:3], axes)
        piece = net(params, Piece(x), passage.ops())
        found.update(passage=passage, piece=piece)
        return *passage.left, piece.x

    tile = jax.ShapeDtypeStruct((image.shape[0], height, width, 3), image.dtype)
    rows, columns, out = jax.eval_shape(probe, params, tile)
    piece, fills = found["piece"], found["passage"].fills
    return Plan(tile, axes, out, piece.lag, piece.windows, rows, columns, fills)


def windows_of(
    net: Net, params: PyTree, image: Array | jax.ShapeDtypeStruct
) -> tuple[Window, ...]:
    """The windows between an image and its map; nothing is computed.

    Raises:
        StreamError: an operation looks at the whole map.
    """
    found = []

    def probe(params, x):
        passage = TileContext((0, 0), x.shape[1:3], (False, False))
        found.append(net(params, Piece(x), passage.ops()))
        return found[0].x

    jax.eval_shape(probe, params, image)
    return found[0].windows


def stream(
    net: Net,
    params: PyTree,
    image: Num[Array, "b h w 3"],
    tile_px: tuple[int, int] | int,
    wanted: Bool[Array | np.ndarray, "y x"] | None = None,
    tissue: Tissue | None = None,
) -> Float[Array, "b y x d"]:
    """The map of a net over an image on the device, at the memory of a tile.

    Equals `net(params, image, DENSE)` in value and in every gradient, or with `tissue`
    `masked(net, params, image, tissue)`.

    Args:
        net: (params, map, ops) -> map.
        params: of it.
        image: grey levels.
        tile_px: (height, width) of a tile, or the height of strips across the image.
        wanted: cells that must be right; tiles that no such cell needs are left out.
            None for all.
        tissue: another function: every window finds zeros beyond it, and tiles without
            any are left out.

    Raises:
        StreamError: the net cannot stream, or the tile does not divide by its stride.
    """
    size = image.shape[1:3]
    plans = plan(net, params, image, tile_px)
    down, across = plans.tiles(size)
    needed = None if wanted is None else plans.needed(wanted, size)
    if tissue is not None:
        touched = plans.touched(tissue, size)
        needed = touched if needed is None else touched & needed
    needed = None if needed is None else jnp.asarray(needed)
    tiles = cut(image, plans.tile_px, (down, across))

    body = jax.checkpoint(
        functools.partial(pass_tile, net, plans.axes, size, tissue=tissue),
        prevent_cse=False,
    )

    def blank(params, at, rows, columns, tile):
        return jax.tree.map(jnp.zeros_like, (plans.rows, plans.columns, plans.out))

    def along(row, columns, xs):
        column, rows, tile = xs
        at = (row, column)
        if needed is None:
            rows, columns, out = body(params, at, rows, columns, tile)
        else:
            rows, columns, out = lax.cond(
                needed[at], body, blank, params, at, rows, columns, tile
            )
        return columns, (rows, out)

    def step(rows, xs):
        row, tiles = xs
        start = plans.edge(1)
        _, (rows, out) = lax.scan(
            functools.partial(along, row), start, (jnp.arange(across), rows, tiles)
        )
        return rows, out

    start = [jnp.stack([r] * across) for r in plans.edge(0)]
    _, out = lax.scan(step, start, (jnp.arange(down), tiles))
    return uncut(out, plans.lag, plans.cells(size))


def masked(
    net: Net, params: PyTree, image: Num[Array, "b h w 3"], tissue: Tissue
) -> Float[Array, "b y x d"]:
    """The map of a net whose windows find zeros beyond the tissue, all at once."""
    passage = TileContext((0, 0), image.shape[1:3], (False, False), tissue=tissue)
    return net(params, Piece(image), passage.ops()).x


def pass_tile(net, axes, size, params, at, rows, columns, tile, tissue=None):
    """What a tile leaves to the one below, what to the one on the right, and its cells.

    Args:
        net: (params, map, ops) -> map.
        axes: which of the two are cut into tiles.
        size: (height, width) of the image, px.
        params: of the net.
        at: (row, column) of the tile.
        rows: what the tile above left.
        columns: what the tile on the left left.
        tile: pixels [b h w 3].
        tissue: of the image, or of what this tile meets; None for the net's own map.
    """
    passage = TileContext(at, size, axes, rows, columns, tissue)
    out = net(params, Piece(tile), passage.ops()).x
    return *passage.left, out


def _any_cell(cells, reach):
    """For each tile whether a cell is set that reaches it, by rows and by columns."""
    rows, columns = (a.astype(np.float32) for a in reach)
    return rows.T @ cells.astype(np.float32) @ columns > 0


def cut(
    image: Num[Array, "b h w d"], tile_px: tuple[int, int], count: tuple[int, int]
) -> Num[Array, "rows columns b i j d"]:
    """An image as tiles, blank beyond it."""
    b, *size, d = image.shape
    full = [n * px for n, px in zip(count, tile_px, strict=True)]
    image = image[:, : full[0], : full[1]]
    more = [(0, max(f - n, 0)) for f, n in zip(full, size, strict=True)]
    image = jnp.pad(image, ((0, 0), *more, (0, 0)))
    image = image.reshape(b, count[0], tile_px[0], count[1], tile_px[1], d)
    return image.transpose(1, 3, 0, 2, 4, 5)


def uncut(
    blocks: Float[Array | np.ndarray, "rows columns b i j d"],
    lag: tuple[int, int],
    cells: tuple[int, int],
) -> Float[Array | np.ndarray, "b y x d"]:
    """The cells of all tiles as one map, what ran late put where it belongs."""
    down, across, b, h, w, d = blocks.shape
    whole = blocks.transpose(2, 0, 3, 1, 4, 5).reshape(b, down * h, across * w, d)
    return whole[:, lag[0] : lag[0] + cells[0], lag[1] : lag[1] + cells[1]]
