"""One tile of an image going by a convolutional net, and what it leaves behind."""

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
    """A net or a tile that cannot stream; the message says why and the mend."""


class Window(NamedTuple):
    """A convolution or a pooling along one axis.

    Attributes:
        size: k.
        stride: s.
        padding: on either side.
        ceil: whether a last window that is only partly in the map counts.
    """

    size: int
    stride: int
    padding: int
    ceil: bool = False


class Field(NamedTuple):
    """What the positions of a map see of the image, along one axis, in px.

    Attributes:
        stride: position i is centred on pixel i * stride, more or less.
        before: its field begins so many px before that pixel
        after: and ends so many px after it.
    """

    stride: int
    before: int
    after: int

    @property
    def size(self) -> int:
        """The receptive field."""
        return self.before + self.after + 1


def field(windows: tuple[Window, ...]) -> Field:
    """The receptive field behind some windows, the first nearest to the image."""
    step, before, after = 1, 0, 0
    for k, s, p, _ in windows:
        before, after = before + p * step, after + (k - 1 - p) * step
        step *= s
    return Field(step, before, after)


def length(n: Any, windows: tuple[Window, ...]) -> Any:
    """Positions along an axis of n px behind some windows; n may be traced."""
    for k, s, p, ceil in windows:
        n = (n + 2 * p - k + (s - 1) * ceil) // s + 1
    return n


class Tissue(NamedTuple):
    """Where a map is let through; elsewhere every window finds zeros.

    Attributes:
        mask: True where there is tissue [y x], by cells.
        cell_px: side of a cell.
        start: index (row, column), among the cells of the image, of the mask's first.
    """

    mask: Bool[Array | np.ndarray, "y x"]
    cell_px: Any
    start: tuple[Any, Any] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Piece:
    """The part of a map that goes by with one tile.

    Attributes:
        x: of tile (r, c), the positions from (r h - lag[0], c w - lag[1]) on.
        lag: rows and columns by which the map runs late.
        windows: behind which it lies.
    """

    x: Num[Array, "b h w d"]
    lag: tuple[int, int] = (0, 0)
    windows: tuple[Window, ...] = ()


class TileContext:
    """The operations of one tile as it goes by; what it leaves behind is kept in order.

    Args:
        at: index (row, column) of the tile; may be traced.
        size: (height, width) of the image; may be traced.
        axes: which of the two are cut into tiles; along another the tile is all there
            is, and is padded as usual.
        rows: what the tile above left, for each window; None for what is above a map.
        columns: what the tile on the left left.
        tissue: for another function than the net's own; None for that.
    """

    def __init__(
        self, at, size, axes=(True, True), rows=None, columns=None, tissue=None
    ):
        self.at, self.size, self.axes = at, size, axes
        self.before, self.tissue = (rows, columns), tissue
        self.left = ([], [])
        self.fills = ([], [])

    def ops(self) -> Ops:
        """For the net."""
        return Ops(self.conv, self.max_pool, self.add, self.each, self.whole)

    def conv(self, piece: Piece, kernel: Array, stride: int, padding: int) -> Piece:
        return self._windowed(
            piece,
            Window(kernel.shape[0], stride, padding),
            lambda x: valid_conv(x, kernel, stride),
            0.0,
        )

    def max_pool(
        self, piece: Piece, size: int, stride: int, padding: int, ceil: bool = False
    ) -> Piece:
        return self._windowed(
            piece,
            Window(size, stride, padding, ceil),
            lambda x: max_pool(x, size, stride, 0),
            -jnp.inf,
        )

    def add(self, a: Piece, b: Piece) -> Piece:
        lag = tuple(map(max, a.lag, b.lag))
        a, b = self._held_back(a, lag), self._held_back(b, lag)
        # The longer way round sees more; lengths agree.
        windows = max(a.windows, b.windows, key=lambda windows: field(windows).size)
        return Piece(a.x + b.x, lag, windows)

    def each(self, f: Callable, piece: Piece) -> Piece:
        return dataclasses.replace(piece, x=f(piece.x))

    def whole(self, f: Callable, piece: Piece) -> Piece:
        raise StreamError(
            f"{type(f).__name__} looks at a whole map at once, which no tile has; a "
            "net that streams takes frozen or layer norms, not group norm"
        )

    def _windowed(self, piece, window, op, fill):
        x, lag = self._inside(piece, fill), list(piece.lag)
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
        return Piece(op(x), tuple(lag), (*piece.windows, window))

    def _held_back(self, piece, lag):
        x = piece.x
        for axis in (0, 1):
            n = x.shape[1 + axis]
            x = self._extended(x, axis, lag[axis] - piece.lag[axis], 0.0)
            x = lax.slice_in_dim(x, 0, n, axis=1 + axis)
        return dataclasses.replace(piece, x=x, lag=lag)

    def _extended(self, x, axis, n, fill):
        """Puts the last n rows or columns that went by before x, and keeps the last."""
        if n <= 0:
            return x
        shape = (*x.shape[: 1 + axis], n, *x.shape[2 + axis :])
        before, left = self.before[axis], self.left[axis]
        kept = jnp.full(shape, fill, x.dtype) if before is None else before[len(left)]
        both = jnp.concatenate([kept, x], 1 + axis)
        left.append(lax.slice_in_dim(both, x.shape[1 + axis], None, axis=1 + axis))
        self.fills[axis].append(fill)
        return both

    def _inside(self, piece, fill):
        """Overwrites what lies outside tissue, and outside the true map."""
        x = piece.x
        if self.tissue is not None:
            x = jnp.where(self._on_tissue(piece)[..., None], x, jnp.zeros((), x.dtype))
        for axis in (0, 1):
            if self.axes[axis]:
                i = self._positions(piece, axis)
                inside = (i >= 0) & (i < length(self.size[axis], piece.windows))
                inside = inside.reshape((-1, 1, 1) if axis == 0 else (-1, 1))
                x = jnp.where(inside, x, jnp.asarray(fill, x.dtype))
        return x

    def _positions(self, piece, axis):
        """Of the piece in the map, along one axis."""
        i = jnp.arange(piece.x.shape[1 + axis])
        return i + self.at[axis] * len(i) - piece.lag[axis] if self.axes[axis] else i

    def _on_tissue(self, piece):
        mask, cell_px, start = self.tissue
        stride = field(piece.windows).stride
        cells = [
            jnp.clip(self._positions(piece, axis) * stride // cell_px - first, 0, n - 1)
            for axis, (first, n) in enumerate(zip(start, mask.shape, strict=True))
        ]
        return mask[cells[0]][:, cells[1]]


def _pad(x, axis, before, after, fill):
    widths = [(0, 0)] * x.ndim
    widths[1 + axis] = (before, after)
    return jnp.pad(x, widths, constant_values=jnp.asarray(fill, x.dtype))
