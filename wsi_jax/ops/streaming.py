"""A convolutional net over an image larger than memory: exact, each tile once.

The image is processed tile by tile, rows of tiles from the top, each from the left. A
window (a convolution or a pooling) of size k and stride s needs, above and left of a
tile, the last k - s rows and columns before it. So each window keeps these in buffers:
`rows`, one for each column of tiles, and `columns`, one for the current row of tiles,
taken after the rows were put on top so that the corner is right.

Symmetric padding needs pixels ahead. Instead of reading ahead a stream is late: a map
lags by a fixed number of rows and columns, a skip connection is delayed until the
branch that it joins arrives, and behind the image some blank tiles flush the lag out.
Before each window all that lies outside the true map is overwritten, from the tile's
index and the lag; that is the padding. So one compiled tile serves images of any size.

Gradients are those of autodiff: the loop over tiles reversed, the cotangents of the
buffers flowing back over the seams, every tile computed once more (cf. Pinckaers et
al., 2020). They are those of the net in one piece, up to which of equal maxima in a
pooling has one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax
from jaxtyping import Array, Bool, Float, Num, PyTree

from wsi_jax.ops.stream_plan import Net, plan_stream
from wsi_jax.ops.stream_tile import TileContext, TileMap, TissueMask


def stream(
    net: Net,
    params: PyTree,
    image: Num[Array, "b h w 3"],
    tile_px: tuple[int, int] | int,
    wanted: Bool[Array | np.ndarray, "y x"] | None = None,
    tissue: TissueMask | None = None,
) -> Float[Array, "b y x d"]:
    """The map of a net over an image on the device, at the memory of a tile.

    Equals `net(params, image, DENSE)` in value and in every gradient, or with `tissue`
    `dense_on_tissue(net, params, image, tissue)`.

    Args:
        image: pixels, 0 to 255.
        tile_px: (height, width) of a tile, or the height of strips across the image.
        wanted: cells that must be right; tiles that no such cell depends on are left
            out. None for all.
        tissue: outside which every window finds zeros; tiles without any are left out.

    Raises:
        StreamError: the net cannot stream, or the tile does not divide by its stride.
    """
    size = image.shape[1:3]
    plan = plan_stream(net, params, image, tile_px)
    needed = None if wanted is None else plan.tiles_for_cells(wanted, size)
    if tissue is not None:
        on_tissue = plan.tiles_on_tissue(tissue, size)
        needed = on_tissue if needed is None else on_tissue & needed
    one_tile = functools.partial(stream_one_tile, net, plan.axes, size, tissue=tissue)
    one_tile = jax.checkpoint(one_tile, prevent_cse=False)
    if needed is not None:
        one_tile = _only_where(jnp.asarray(needed), one_tile, plan)

    def tile_step(row, columns, xs):
        column, rows, tile = xs
        rows, columns, out = one_tile(params, (row, column), rows, columns, tile)
        return columns, (rows, out)

    def row_step(rows, xs):
        row, tiles = xs
        step, start = functools.partial(tile_step, row), plan.edge_buffers(1)
        return lax.scan(step, start, (jnp.arange(across), rows, tiles))[1]

    down, across = plan.tiles(size)
    tiles = split_into_tiles(image, plan.tile_px, (down, across))
    start = [jnp.stack([r] * across) for r in plan.edge_buffers(0)]
    _, out = lax.scan(row_step, start, (jnp.arange(down), tiles))
    return join_tiles(out, plan.lag, plan.cells(size))


def dense_on_tissue(
    net: Net, params: PyTree, image: Num[Array, "b h w 3"], tissue: TissueMask
) -> Float[Array, "b y x d"]:
    """The map of a net whose windows find zeros outside tissue, in one piece."""
    context = TileContext((0, 0), image.shape[1:3], (False, False), tissue=tissue)
    return net(params, TileMap(image), context.ops()).x


def stream_one_tile(
    net, axes, size, params, at, rows, columns, tile, tissue=None, packing=1
):
    """Buffers for the tile below and for the tile on the right, and a tile's cells.

    Args:
        axes: which of the two axes are split into tiles.
        packing: side of the squares of pixels that `tile` holds in one position.
        tissue: tissue of the image, or the part that this tile meets; None for the
            net's own map.
    """
    context = TileContext(at, size, axes, rows, columns, tissue)
    out = net(params, TileMap(tile, packing=packing), context.ops()).x
    return *context.outgoing, out


def _only_where(needed, one_tile, plan):
    """`one_tile` where a tile is needed; blank buffers and cells elsewhere."""

    def blank(params, at, rows, columns, tile):
        return jax.tree.map(jnp.zeros_like, (plan.rows, plan.columns, plan.out))

    def one_or_blank(params, at, *rest):
        return lax.cond(needed[at], one_tile, blank, params, at, *rest)

    return one_or_blank


def split_into_tiles(
    image: Num[Array, "b h w d"], tile_px: tuple[int, int], count: tuple[int, int]
) -> Num[Array, "rows columns b i j d"]:
    """An image in tiles, which are blank beyond it."""
    size = image.shape[1:3]
    full = [n * px for n, px in zip(count, tile_px, strict=True)]
    image = image[:, : full[0], : full[1]]
    more = [(0, max(f - n, 0)) for f, n in zip(full, size, strict=True)]
    image = jnp.pad(image, ((0, 0), *more, (0, 0)))
    tiles = "b (r i) (c j) d -> r c b i j d"
    return rearrange(image, tiles, r=count[0], c=count[1])


def join_tiles(
    blocks: Float[Array | np.ndarray, "rows columns b i j d"],
    lag: tuple[int, int],
    cells: tuple[int, int],
) -> Float[Array | np.ndarray, "b y x d"]:
    """The cells of all tiles as one map, without the lag."""
    whole = rearrange(blocks, "r c b i j d -> b (r i) (c j) d")
    return whole[:, lag[0] : lag[0] + cells[0], lag[1] : lag[1] + cells[1]]
