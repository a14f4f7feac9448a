"""A streamed map over many devices: columns of tiles side by side, rows in a wave.

Device k goes by row t - k at step t, so that what its left neighbour leaves to it is
there when it is needed: buffers of columns travel by `ppermute`, those of rows stay.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Num, PyTree

from wsi_jax.ops.streaming import Net, cut, pass_tile, plan, uncut


def stream_wide(
    net: Net,
    params: PyTree,
    image: Num[Array, "b h w 3"],
    tile_px: tuple[int, int],
    mesh: Mesh,
) -> Float[Array, "b y x d"]:
    """The map of a net over an image, columns of tiles split over the devices.

    Equals `ops.streaming.stream` in value and in every gradient; the gradients of the
    parameters are added up once, behind the loop.

    Args:
        net: (params, map, ops) -> map.
        params: of it, whole on every device.
        image: grey levels.
        tile_px: (height, width) of a tile.
        mesh: with one axis.

    Raises:
        StreamError: the net cannot stream, or the tile does not divide by its stride.
    """
    size, (axis,), count = image.shape[1:3], mesh.axis_names, mesh.size
    plans = plan(net, params, image, tile_px)
    down, across = plans.tiles(size)
    each = -(-across // count)
    tiles = cut(image, tile_px, (down, each * count))
    body = jax.checkpoint(
        functools.partial(pass_tile, net, plans.axes, size), prevent_cse=False
    )
    forward = [(k, k + 1) for k in range(count - 1)]

    def varies(tree):
        return jax.tree.map(lambda a: lax.pcast(a, axis, to="varying"), tree)

    def mine(params, tiles):
        """The cells of this device's columns [down each b i j d]."""
        # Of its own from here on: else their gradient is added up once a tile.
        k, params = lax.axis_index(axis), varies(params)
        edge = varies(plans.edge(1))
        rows = varies([jnp.stack([r] * each) for r in plans.edge(0)])
        nothing = varies(jnp.zeros((each, *plans.out.shape), plans.out.dtype))

        def along(row, columns, xs):
            column, rows, tile = xs
            rows, columns, out = body(
                params, (row, k * each + column), rows, columns, tile
            )
            return columns, (rows, out)

        def go(row, rows, columns, tiles):
            indices = varies(jnp.arange(each))
            columns, (rows, out) = lax.scan(
                functools.partial(along, row), columns, (indices, rows, tiles)
            )
            return rows, columns, out

        def wait(row, rows, columns, tiles):
            return rows, columns, nothing

        def step(carry, t):
            rows, columns = carry
            row = t - k
            there = (row >= 0) & (row < down)
            left = lax.ppermute(columns, axis, forward)
            left = jax.tree.map(lambda a, b: jnp.where(k == 0, a, b), edge, left)
            mine = lax.dynamic_index_in_dim(tiles, jnp.clip(row, 0, down - 1), 0, False)
            rows, columns, out = lax.cond(there, go, wait, row, rows, left, mine)
            return (rows, columns), out

        _, out = lax.scan(step, (rows, edge), jnp.arange(down + count - 1))
        return lax.dynamic_slice_in_dim(out, k, down, 0)

    whole, columns = PartitionSpec(), PartitionSpec(None, axis)
    out = jax.shard_map(mine, mesh=mesh, in_specs=(whole, columns), out_specs=columns)(
        params, tiles
    )
    return uncut(out, plans.lag, plans.cells(size))
