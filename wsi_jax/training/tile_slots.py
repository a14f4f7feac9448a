"""What tiles leave to their neighbours, on the device until these are computed."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from wsi_jax.ops.stream_plan import StreamPlan
from wsi_jax.training.compile import compile_phase
from wsi_jax.types import bucket

LEAST_SLOTS = 64  # so that slides of many sizes share what is compiled


class Slots:
    """Buffers on the device that wait for the next tile of each column and each row.

    One slot for each column of tiles, and one for each row. Two more of each stand for
    neighbours that are not computed: the slide's edge, and zeros for tiles left out.
    """

    EDGE, ZEROS, FIRST = 0, 1, 2
    NONE = np.iinfo(np.int32).max

    def __init__(self, plan: StreamPlan, computed: Bool[np.ndarray, "rows columns"]):
        self._batch, self._computed = plan.batch, np.pad(computed, 1)
        self._slots = tuple(
            [_slots(s, fill, _length(n)) for s, fill in zip(shapes, fills, strict=True)]
            for shapes, fills, n in zip(
                (plan.rows, plan.columns), plan.fills, computed.shape[::-1], strict=True
            )
        )
        nothing = jax.tree.map(jnp.zeros_like, (plan.rows, plan.columns))
        self._left = nothing, self._places(np.zeros((0, 2), int))

    def take(self, batch: Int[np.ndarray, "n 2"], side: int) -> tuple[list, list]:
        """The buffers of the neighbours of each tile.

        Args:
            side: -1 for those of the tiles above and on the left, 1 of the others.
        """
        own, places = self._places(batch, self.ZEROS), []
        for axis in (0, 1):
            beside = np.array(batch)
            beside[:, axis] += side
            place = own[axis]
            place[: len(batch)][~self._computed[tuple(beside.T + 1)]] = self.ZEROS
            place[: len(batch)][beside[:, axis] < 0] = self.EDGE
            places.append(place)
        self._slots, taken = _exchange(self._slots, *self._left, tuple(places))
        return taken

    def leave(self, batch: Int[np.ndarray, "n 2"], buffers: tuple[list, list]) -> None:
        """Keeps what each tile leaves to its neighbours."""
        self._left = buffers, self._places(batch)

    def _places(self, batch, empty=NONE):
        """Each tile's own slots: of its column, and of its row."""
        full = np.full((2, self._batch), empty, np.int32)
        full[:, : len(batch)] = batch.T[::-1] + self.FIRST
        return tuple(full)


def _exchange(slots, left, places, wanted):
    """The slots with what was left in some of them, and the contents of others."""
    put = lambda old, new, at: [
        a.at[at].set(b, mode="drop") for a, b in zip(old, new, strict=True)
    ]
    slots = tuple(map(put, slots, left, places))
    return slots, tuple(
        [a[at] for a in each] for each, at in zip(slots, wanted, strict=True)
    )


_exchange = compile_phase(_exchange, donate=(0,))


def _length(n):
    return bucket(n + Slots.FIRST, LEAST_SLOTS)


def _slots(shape, fill, n):
    slots = np.zeros((n, *shape.shape[1:]), shape.dtype)
    slots[Slots.EDGE] = fill
    return jnp.asarray(slots)
