"""A convolutional net on one tile of an image, with buffers for its neighbours."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import repeat
from jaxtyping import Array, Bool, Num

from wsi_jax.ops.convolution import pad_or_cut, padded_conv
from wsi_jax.ops.pixel_packing import packed_kernel, unpack
from wsi_jax.ops.tile_border import MAX, SUM, last_positions, window_behind
from wsi_jax.ops.trunk_ops import Ops, relu, window_max
from wsi_jax.ops.windows import Window, map_length, receptive_field


class StreamError(ValueError):
    """A net or a tile that cannot stream; the message says why and what mends it."""


class TissueMask(NamedTuple):
    """Tissue of an image, outside which every window finds zeros.

    Attributes:
        mask: [y x], True for cells with tissue; [b y x] for tiles with one each.
        cell_px: side of a cell, in pixels.
        start: (row, column) in the image, in cells, of the mask's first cell; [b] each.
    """

    mask: Bool[Array | np.ndarray, "*b y x"]
    cell_px: Any
    start: tuple[Any, Any] = (0, 0)


@dataclasses.dataclass(frozen=True)
class TileMap:
    """Part of a map that is computed with one tile.

    Attributes:
        x: positions from (r h - lag[0], c w - lag[1]) on, for tile (r, c).
        lag: rows and columns by which the map is late.
        windows: windows between the image and this map.
        rectified: whether x comes from a ReLU: positions outside the true map are 0
            already, and none is negative.
        packing: side of the squares of positions that x holds in one (`pixel_packing`).
    """

    x: Num[Array, "b h w d"]
    lag: tuple[int, int] = (0, 0)
    windows: tuple[Window, ...] = ()
    rectified: bool = False
    packing: int = 1


class TileContext:
    """The operations of a net on tiles; they take and leave buffers in order.

    Several tiles, of one image or of several, make one batch: `at`, `size` and the
    tissue then have one entry for each.

    Args:
        at: index (row, column) of the tile; may be traced, and arrays [b].
        size: (height, width) of the image; likewise.
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
        # By map: what is computed from it once, however many operations read it. The
        # map is kept, too, so that no other gets its id.
        self._overwritten, self._borders = {}, {}

    def ops(self) -> Ops:
        """The operations, for the net."""
        return Ops(self.conv, self.max_pool, self.add, self.relu, self.each, self.whole)

    def conv(self, part: TileMap, kernel: Array, stride: int, padding: int) -> TileMap:
        window = Window(kernel.shape[0], stride, padding)
        if padding >= window.size:
            raise StreamError(
                f"a convolution of size {window.size} with a padding of {padding}; pad "
                "by less than its size"
            )
        in_one_group = part.packing**2 * kernel.shape[2] == part.x.shape[-1]
        if part.packing == stride > 1 and in_one_group:
            return self._packed_conv(part, kernel, window)
        return self._windowed(
            part, window, lambda x, pad: padded_conv(x, kernel, stride, pad), SUM
        )

    def max_pool(
        self, part: TileMap, size: int, stride: int, padding: int, ceil: bool = False
    ) -> TileMap:
        return self._windowed(
            part,
            Window(size, stride, padding, ceil),
            lambda x, padding: window_max(x, size, stride, padding),
            MAX,
        )

    def add(self, a: TileMap, b: TileMap) -> TileMap:
        lag = tuple(map(max, a.lag, b.lag))
        a, b = self._delayed(a, lag), self._delayed(b, lag)
        # The longer branch has the larger field; lengths agree.
        windows = max(a.windows, b.windows, key=lambda w: receptive_field(w).size)
        return TileMap(a.x + b.x, lag, windows)

    def relu(self, part: TileMap) -> TileMap:
        # Positions outside the true map become zeros before the ReLU and stay zeros:
        # windows that read the result need no copy of their own.
        part = self._unpacked(part)
        x = relu(self._inside(part, 0.0))
        return dataclasses.replace(part, x=x, rectified=True)

    def each(self, f: Callable, part: TileMap) -> TileMap:
        b, h, w, d = part.x.shape
        squares = part.packing**2
        x = f(part.x.reshape(b, h, squares * w, d // squares)).reshape(b, h, w, -1)
        return dataclasses.replace(part, x=x, rectified=False)

    def whole(self, f: Callable, part: TileMap) -> TileMap:
        raise StreamError(
            f"{type(f).__name__} looks at a whole map at once, which no tile has; a "
            "net that streams takes frozen or layer norms, not group norm"
        )

    def _packed_conv(self, part, kernel, window):
        """A convolution of packed pixels, which do not lag yet, by a packed kernel."""
        k, s, p, _ = window
        history = k - s + -(k - s - p) % s
        # History in whole squares; the kernel is zero on the pixels that it leaves out.
        before = -(-history // s)
        kernel = packed_kernel(kernel, s, before * s - history, before + 1)
        op = lambda x, pad: padded_conv(x, kernel, 1, pad)
        padding = [(before, 0)] * 2
        y = self._with_neighbours(part, (before + 1, 1), padding, op, SUM)
        return TileMap(y, ((history - p) // s,) * 2, (window,))

    def _unpacked(self, part):
        if part.packing == 1:
            return part
        return dataclasses.replace(part, x=unpack(part.x, part.packing), packing=1)

    def _windowed(self, part, window, op, reduction):
        part = self._unpacked(part)
        (k, s, p, ceil), lag, padding = window, list(part.lag), []
        for axis in (0, 1):
            n = part.x.shape[1 + axis]
            if not self.axes[axis]:
                padding.append((p, p + -(n + 2 * p - k) % s * ceil))
                continue
            if n % s:
                raise StreamError(
                    f"{n} positions of a tile do not divide by a stride of {s}; make "
                    "the tile's sides multiples of the net's stride"
                )
            history = k - s + -(k - s - p + lag[axis]) % s
            padding.append((history, 0))  # the last windows may reach beyond: none
            lag[axis] = (lag[axis] + history - p) // s
        y = self._with_neighbours(part, (k, s), padding, op, reduction)
        return TileMap(y, tuple(lag), (*part.windows, window))

    def _delayed(self, part, lag):
        if lag == part.lag:
            return self._unpacked(part)
        part = self._unpacked(part)
        late = [n - m for n, m in zip(lag, part.lag, strict=True)]
        y = self._with_neighbours(
            part, (1, 1), [(n, -n) for n in late], pad_or_cut, SUM
        )
        return dataclasses.replace(part, x=y, lag=lag, rectified=False)

    def _with_neighbours(self, part, window, padding, op, reduction):
        """A window over a map, what lies above it and what lies on its left.

        Args:
            window: (size, stride).
            padding: positions before and after the map along each axis; those before
                it are the neighbours', where the axis is split.
            op: (map, padding) -> map, where what is padded has no effect.
        """
        # A ReLU's map is one array for sums and maxima: its borders hold 0 for both.
        fill = 0.0 if part.rectified else reduction.identity
        x = self._inside(part, fill)
        history = [
            max(before, 0) if tiled else 0
            for (before, _), tiled in zip(padding, self.axes, strict=True)
        ]
        key = id(x), *history
        if key not in self._borders:
            borders = self._neighbours(x, history, fill)
            self._borders[key] = x, borders
        borders = self._borders[key][1]
        return window_behind(x, borders, window, padding, op, reduction)

    def _neighbours(self, x, history, fill):
        """The last rows above x, the last columns on its left; keeps its own.

        Each None where none are asked for. The columns begin with the rows' corner.
        """
        above = left = None
        if n := history[0]:
            above = self._incoming(0, (*x.shape[:1], n, *x.shape[2:]), x, fill)
            self._put(0, last_positions(above, x, n, 1), fill)
        if n := history[1]:
            ends = x[:, :, -n:]
            if above is not None:
                ends = jnp.concatenate([above[:, :, -n:], ends], 1)
            shape = (*ends.shape[:2], n, *x.shape[3:])
            left = self._incoming(1, shape, x, fill)
            self._put(1, last_positions(left, ends, n, 2), fill)
        return above, left

    def _incoming(self, axis, shape, x, fill):
        """The next buffer of a neighbour."""
        if self.incoming[axis] is None:
            return jnp.full(shape, fill, x.dtype)
        return self.incoming[axis][len(self.outgoing[axis])]

    def _put(self, axis, buffer, fill):
        self.outgoing[axis].append(buffer)
        self.fills[axis].append(fill)

    def _inside(self, part, fill):
        """A map, overwritten outside the tissue and outside the true map."""
        # Its zeros outside the map exceed no maximum of what is nowhere negative.
        if part.rectified:
            return part.x
        key = id(part.x), fill
        if key not in self._overwritten:
            self._overwritten[key] = part.x, self._overwrite(part, fill)
        return self._overwritten[key][1]

    def _overwrite(self, part, fill):
        x, side = part.x, part.packing
        packed = {"i": side, "j": side, "d": x.shape[-1] // side**2}
        if self.tissue is not None:
            squares = "b (y i) (x j) -> b y x (i j d)"
            on = repeat(self._on_tissue(part), squares, **packed)
            x = jnp.where(on, x, jnp.zeros((), x.dtype))
        along = "b (n i) -> b n 1 (i j d)", "b (n j) -> b 1 n (i j d)"
        for axis in (0, 1):
            if self.axes[axis]:
                i, size = self._positions(part, axis), jnp.asarray(self.size[axis])
                length = map_length(size, part.windows)
                inside = (i >= 0) & (i < length.reshape(-1, 1))
                inside = repeat(inside, along[axis], **packed)
                x = jnp.where(inside, x, jnp.asarray(fill, x.dtype))
        return x

    def _positions(self, part, axis):
        """Indices [b n] in the map of the positions of a part, along one axis."""
        n = part.x.shape[1 + axis] * part.packing
        first = self.at[axis] * n - part.lag[axis] if self.axes[axis] else 0
        return jnp.arange(n)[None] + jnp.reshape(jnp.asarray(first), (-1, 1))

    def _on_tissue(self, part):
        """Which positions [b h w] of a part are on tissue."""
        mask, cell_px, start = self.tissue
        mask = mask if mask.ndim == 3 else mask[None]
        stride = receptive_field(part.windows).stride
        y, x = (
            jnp.clip(
                self._positions(part, axis) * stride // cell_px
                - jnp.reshape(jnp.asarray(start[axis]), (-1, 1)),
                0,
                mask.shape[1 + axis] - 1,
            )
            for axis in (0, 1)
        )
        tile = jnp.arange(len(mask))[:, None, None]
        return mask[tile, y[:, :, None], x[:, None]]
