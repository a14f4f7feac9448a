"""A convolutional net on one tile of an image, with buffers for its neighbours."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Num

from wsi_jax.ops.convolution import valid_conv
from wsi_jax.ops.trunk_ops import Ops, max_pool


class StreamError(ValueError):
    """A net or a tile that cannot stream; the message says why and what mends it."""


class Window(NamedTuple):
    """Window of a convolution or a pooling along one axis.

    Attributes:
        padding: positions added on either side.
        ceil: whether a last window that is only partly in the map counts.
    """

    size: int
    stride: int
    padding: int
    ceil: bool = False


class ReceptiveField(NamedTuple):
    """Receptive field of the positions of a map, along one axis, in image pixels.

    Attributes:
        stride: distance between positions: that of index i is around pixel i * stride.
        before: pixels of the field before that pixel.
        after: pixels of the field after that pixel.
    """

    stride: int
    before: int
    after: int

    @property
    def size(self) -> int:
        """Size of the receptive field, in pixels."""
        return self.before + self.after + 1


def receptive_field(windows: tuple[Window, ...]) -> ReceptiveField:
    """Receptive field of a map behind some windows, the first nearest to the image."""
    step, before, after = 1, 0, 0
    for k, s, p, _ in windows:
        before, after = before + p * step, after + (k - 1 - p) * step
        step *= s
    return ReceptiveField(step, before, after)


def map_length(n: Any, windows: tuple[Window, ...]) -> Any:
    """Positions of a map behind some windows, of an image of n px; n may be traced."""
    for k, s, p, ceil in windows:
        n = (n + 2 * p - k + (s - 1) * ceil) // s + 1
    return n


class TissueMask(NamedTuple):
    """Tissue of an image, outside which every window finds zeros.

    Attributes:
        mask: [y x], True for cells with tissue.
        cell_px: side of a cell, in pixels.
        start: (row, column) in the image, in cells, of the mask's first cell.
    """

    mask: Bool[Array | np.ndarray, "y x"]
    cell_px: Any
    start: tuple[Any, Any] = (0, 0)


@dataclasses.dataclass(frozen=True)
class TileMap:
    """Part of a map that is computed with one tile.

    Attributes:
        x: positions from (r h - lag[0], c w - lag[1]) on, for tile (r, c).
        lag: rows and columns by which the map is late.
    """

    x: Num[Array, "b h w d"]
    lag: tuple[int, int] = (0, 0)
    windows: tuple[Window, ...] = ()


class TileContext:
    """The operations of a net on one tile; they take and leave buffers in order.

    Args:
        at: index (row, column) of the tile; may be traced.
        size: (height, width) of the image; may be traced.
        axes: which of the two axes are split into tiles; along another the tile is the
            whole image and is padded as usual.
        rows: buffers of the tile above, one for each window; None for blanks.
        columns: buffers of the tile on the left.
        tissue: outside which windows find zeros; None for the net's own map.

    Attributes:
        outgoing: buffers for the tile below, and for the tile on the right.
        fills: the values of their blanks.
    """

    def __init__(
        self, at, size, axes=(True, True), rows=None, columns=None, tissue=None
    ):
        self.at, self.size, self.axes = at, size, axes
        self.incoming, self.tissue = (rows, columns), tissue
        self.outgoing = ([], [])
        self.fills = ([], [])

    def ops(self) -> Ops:
        """The operations, for the net."""
        return Ops(self.conv, self.max_pool, self.add, self.each, self.whole)

    def conv(self, part: TileMap, kernel: Array, stride: int, padding: int) -> TileMap:
        return self._windowed(
            part,
            Window(kernel.shape[0], stride, padding),
            lambda x: valid_conv(x, kernel, stride),
            0.0,
        )

    def max_pool(
        self, part: TileMap, size: int, stride: int, padding: int, ceil: bool = False
    ) -> TileMap:
        return self._windowed(
            part,
            Window(size, stride, padding, ceil),
            lambda x: max_pool(x, size, stride, 0),
            -jnp.inf,
        )

    def add(self, a: TileMap, b: TileMap) -> TileMap:
        lag = tuple(map(max, a.lag, b.lag))
        a, b = self._delayed(a, lag), self._delayed(b, lag)
        # The longer branch has the larger field; lengths agree.
        windows = max(a.windows, b.windows, key=lambda w: receptive_field(w).size)
        return TileMap(a.x + b.x, lag, windows)

    def each(self, f: Callable, part: TileMap) -> TileMap:
        return dataclasses.replace(part, x=f(part.x))

    def whole(self, f: Callable, part: TileMap) -> TileMap:
        raise StreamError(
            f"{type(f).__name__} looks at a whole map at once, which no tile has; a "
            "net that streams takes frozen or layer norms, not group norm"
        )

    def _windowed(self, part, window, op, fill):
        x, lag = self._padded(part, fill), list(part.lag)
        k, s, p, ceil = window
        for axis in (0, 1):
            n = x.shape[1 + axis]
            if not self.axes[axis]:
                x = _pad(x, axis, p, p + -(n + 2 * p - k) % s * ceil, fill)
                continue
            if n % s:
                raise StreamError(
                    f"{n} positions of a tile do not divide by a stride of {s}; make "
                    "the tile's sides multiples of the net's stride"
                )
            extra = -(k - s - p + lag[axis]) % s
            history = k - s + extra
            x = self._extended(x, axis, history, fill)
            first = max(-history, 0)
            x = lax.slice_in_dim(x, first, first + n - s + k, axis=1 + axis)
            lag[axis] = (lag[axis] + history - p) // s
        return TileMap(op(x), tuple(lag), (*part.windows, window))

    def _delayed(self, part, lag):
        x = part.x
        for axis in (0, 1):
            n = x.shape[1 + axis]
            x = self._extended(x, axis, lag[axis] - part.lag[axis], 0.0)
            x = lax.slice_in_dim(x, 0, n, axis=1 + axis)
        return dataclasses.replace(part, x=x, lag=lag)

    def _extended(self, x, axis, n, fill):
        """x behind the last n rows or columns before it; keeps its own last n."""
        if n <= 0:
            return x
        shape = (*x.shape[: 1 + axis], n, *x.shape[2 + axis :])
        incoming, outgoing = self.incoming[axis], self.outgoing[axis]
        if incoming is None:
            history = jnp.full(shape, fill, x.dtype)
        else:
            history = incoming[len(outgoing)]
        both = jnp.concatenate([history, x], 1 + axis)
        outgoing.append(lax.slice_in_dim(both, x.shape[1 + axis], None, axis=1 + axis))
        self.fills[axis].append(fill)
        return both

    def _padded(self, part, fill):
        """x, overwritten outside the tissue and outside the true map."""
        x = part.x
        if self.tissue is not None:
            x = jnp.where(self._on_tissue(part)[..., None], x, jnp.zeros((), x.dtype))
        for axis in (0, 1):
            if self.axes[axis]:
                i = self._positions(part, axis)
                inside = (i >= 0) & (i < map_length(self.size[axis], part.windows))
                inside = inside.reshape((-1, 1, 1) if axis == 0 else (-1, 1))
                x = jnp.where(inside, x, jnp.asarray(fill, x.dtype))
        return x

    def _positions(self, part, axis):
        """Indices in the map of the positions of a part, along one axis."""
        i = jnp.arange(part.x.shape[1 + axis])
        return i + self.at[axis] * len(i) - part.lag[axis] if self.axes[axis] else i

    def _on_tissue(self, part):
        mask, cell_px, start = self.tissue
        stride = receptive_field(part.windows).stride
        cells = [
            jnp.clip(self._positions(part, axis) * stride // cell_px - first, 0, n - 1)
            for axis, (first, n) in enumerate(zip(start, mask.shape, strict=True))
        ]
        return mask[cells[0]][:, cells[1]]


def _pad(x, axis, before, after, fill):
    widths = [(0, 0)] * x.ndim
    widths[1 + axis] = (before, after)
    return jnp.pad(x, widths, constant_values=jnp.asarray(fill, x.dtype))
