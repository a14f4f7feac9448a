"""What tiles leave to their neighbours, on the device until these are computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Int

from wsi_jax.ops.stream_plan import StreamPlan
from wsi_jax.training.compile import compile_phase
from wsi_jax.training.mesh import split_over, whole_on
from wsi_jax.types import bucket

LEAST = 16  # slots, so that slides of many sizes share what is compiled
EDGE, ZEROS, FIRST = 0, 1, 2  # two slots that stand for no tile, and that of tile 0
NONE = np.iinfo(np.int32).max


class Slots:
    """Buffers on the device that wait for the next tile of each column and each row.

    One slot for each column of tiles, and one for each row. Two more of each stand for
    neighbours that are not computed: the slide's edge, and zeros for tiles left out.

    Where tiles are split over a mesh, every device has all slots: the neighbour of a
    tile may be computed by any of them.
    """

    def __init__(
        self,
        plan: StreamPlan,
        computed: Bool[np.ndarray, "rows columns"],
        mesh: Mesh | None = None,
    ):
        self._batch, self._computed = plan.batch, np.pad(computed, 1)
        buffers = plan.rows, plan.columns
        kinds = zip(_counts(computed.shape), buffers, plan.fills, strict=True)
        self._slots = tuple(
            [
                _new_slots(shape=(n, *s.shape[1:]), dtype=s.dtype, fill=fill)
                for s, fill in zip(shapes, fills, strict=True)
            ]
            for n, shapes, fills in kinds
        )
        none = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), buffers)
        self._exchange, at = _exchange_on(mesh), np.zeros((0, 2), int)
        if mesh is not None:
            self._slots = jax.device_put(self._slots, whole_on(mesh))
            none = jax.device_put(none, split_over(mesh))
        self._put = none, self._indices(at)

    def take(self, batch: Int[np.ndarray, "n 2"], side: int) -> tuple[list, list]:
        """The buffers of the neighbours of each tile.

        Args:
            side: -1 for those of the tiles above and on the left, 1 of the others.
        """
        indices, n = self._indices(batch, ZEROS), len(batch)
        for axis, index in enumerate(indices):
            beside = np.array(batch)
            beside[:, axis] += side
            index[:n][~self._computed[tuple(beside.T + 1)]] = ZEROS
            index[:n][beside[:, axis] < 0] = EDGE
        self._slots, taken = self._exchange(self._slots, *self._put, indices)
        return taken

    def put(self, batch: Int[np.ndarray, "n 2"], buffers: tuple[list, list]) -> None:
        """Keeps what each tile leaves to its neighbours."""
        self._put = buffers, self._indices(batch)

    def _indices(self, batch, empty=NONE):
        """Slots of each tile's column and row; `empty` behind a batch not full."""
        full = np.full((2, self._batch), empty, np.int32)
        full[:, : len(batch)] = batch.T[::-1] + FIRST
        return tuple(full)


def slot_bytes(plan: StreamPlan, tiles: tuple[int, int]) -> int:
    """Bytes of the slots for a slide of so many rows and columns of tiles."""
    each = (
        sum(s.size * s.dtype.itemsize for s in buffers) // plan.batch
        for buffers in (plan.rows, plan.columns)
    )
    return sum(n * size for n, size in zip(_counts(tiles), each, strict=True))


def _counts(tiles):
    """Slots for the columns of tiles, and for the rows."""
    return tuple(bucket(n + FIRST, LEAST) for n in tiles[::-1])


def _edge_and_zeros(shape, dtype, fill):
    return jnp.zeros(shape, dtype).at[EDGE].set(fill)


def _exchanged(slots, buffers, places, wanted):
    """The slots with buffers put in some of them, and the contents of others."""
    put = lambda old, new, at: [
        a.at[at].set(b, mode="drop") for a, b in zip(old, new, strict=True)
    ]
    slots = tuple(map(put, slots, buffers, places))
    take = lambda each, at: [a[at] for a in each]
    return slots, tuple(map(take, slots, wanted))


_new_slots = compile_phase(_edge_and_zeros, static=("shape", "dtype", "fill"))


@functools.cache
def _exchange_on(mesh):
    out = None if mesh is None else (whole_on(mesh), split_over(mesh))
    return compile_phase(_exchanged, donate=(0,), out=out)
