"""The usual way to take a net over a large image: tiles that overlap by its field.

Exact in value and gradient like `ops.streaming`, and kept to compare with: what lies in
the overlap is computed again for every tile that it belongs to.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

from wsi_jax.ops.stream_plan import Net, net_windows
from wsi_jax.ops.stream_tile import StreamError
from wsi_jax.ops.trunk_ops import DENSE
from wsi_jax.ops.windows import map_length, receptive_field


def halo(
    net: Net, params: PyTree, image: Num[Array, "b h w 3"], tile_px: tuple[int, int]
) -> Float[Array, "b y x d"]:
    """The map of a net over an image, from overlapping tiles one after the other.

    Args:
        net: (params, map, ops) -> map.
        params: of it.
        image: grey levels.
        tile_px: (height, width) of a tile with its halo.

    Raises:
        StreamError: the net cannot be cut into tiles, or a tile has no cell of its own.
    """
    size, windows = image.shape[1:3], net_windows(net, params, image)
    stride, before, after = receptive_field(windows)
    count = [map_length(n, windows) for n in size]
    margin = -(-before // stride)
    own = [(px - after - margin * stride - 1) // stride + 1 for px in tile_px]
    if min(own) < 1:
        raise StreamError(
            f"a tile of {tile_px} px is all halo; {margin * stride + after + 1} px is "
            "the least that gives a cell"
        )
    crop = jax.checkpoint(functools.partial(net, ops=DENSE))
    spans = [
        [_span(c, n, cells, stride, margin, after, px) for c in range(0, cells, n)]
        for n, cells, px in zip(own, count, size, strict=True)
    ]
    rows = []
    for (top, bottom), (first, end) in spans[0]:
        row = []
        for (left, right), (start, stop) in spans[1]:
            cells = crop(params, image[:, top:bottom, left:right])
            row.append(cells[:, first:end, start:stop])
        rows.append(jnp.concatenate(row, 2))
    return jnp.concatenate(rows, 1)


def _span(cell, n, cells, stride, margin, after, size):
    """Of the cells from `cell` on: their pixels, and where they are among the crop's.

    A crop begins on the grid of the cells; only at the image's own edge is its padding
    the true one, and no cell is lost to it.
    """
    last = min(cell + n, cells)
    lead = min(margin, cell)
    pixels = (cell - lead) * stride, min((last - 1) * stride + after + 1, size)
    return pixels, (lead, lead + last - cell)
