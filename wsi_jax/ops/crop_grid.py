"""Grid of an overview's cells at several magnifications, and the crops of cells.

A cell is (magnification, row, column); all cells of all magnifications are numbered in
C order. Its crop is the square of a fixed number of pixels, at the magnification's own
mpp, whose centre is the cell's: the coarser, the wider the field.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, UInt8


class CropGrid(NamedTuple):
    """Cells of an overview at all magnifications, and the geometry of their crops.

    Attributes:
        mpps: um/px of each magnification, the finest first.
        crop_px: side of a crop, in pixels at its mpp.
        cell_um: side of a cell of the finest magnification, in um.
        ratios: side of each magnification's cells, in cells of the finest: all 1 on a
            common grid.
    """

    mpps: tuple[float, ...]
    crop_px: int
    cell_um: float
    ratios: tuple[int, ...]

    def grids(self, shape: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each magnification, where the finest has `shape`."""
        return tuple(tuple(-(-n // ratio) for n in shape) for ratio in self.ratios)

    def cell_counts(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """Number of cells of each magnification."""
        return tuple(rows * columns for rows, columns in self.grids(shape))

    def tissue_cells(self, mask: Bool[Array, "b y x"]) -> Bool[Array, "b k"]:
        """Mask of all magnifications' cells: those that hold a masked finest cell."""
        masks = []
        for ratio in self.ratios:
            wide = [(0, 0)] + [(0, -n % ratio) for n in mask.shape[1:]]
            cells = "b (y r) (x s) -> b (y x) r s"
            blocks = rearrange(jnp.pad(mask, wide), cells, r=ratio, s=ratio)
            masks.append(blocks.any((2, 3)))
        return jnp.concatenate(masks, 1)

    def crop_corners(
        self, index: Int[Array, "*n"], shape: tuple[int, int]
    ) -> tuple[Int[Array, "*n"], Int[Array, "*n 2"]]:
        """Magnification of some cells, and the corner (y, x) of their crops.

        Args:
            shape: (rows, columns) of the finest magnification.

        Returns:
            Index of the magnification, and the corner in whole pixels at its mpp,
            which may lie off the slide.
        """
        first = np.cumsum([0, *self.cell_counts(shape)[:-1]])
        which = jnp.searchsorted(jnp.asarray(first[1:]), index, side="right")
        which = which.astype(jnp.int32)
        columns = jnp.asarray([columns for _, columns in self.grids(shape)])[which]
        cell = jnp.stack(jnp.divmod(index - jnp.asarray(first)[which], columns), -1)
        # From here on float: centres of cells are halves, and exact.
        side = [
            self.cell_um * r / m for r, m in zip(self.ratios, self.mpps, strict=True)
        ]
        side = jnp.asarray(np.array(side, np.float32))[which][..., None]
        corner = (cell.astype(side.dtype) + 0.5) * side - self.crop_px / 2
        return which, jnp.floor(corner + 0.5).astype(jnp.int32)

    def attention_on_finest(
        self, attention: Float[Array, "b k"], mask: Bool[Array, "b y x"]
    ) -> Float[Array, "b m y x"]:
        """Attention at each magnification, divided among the masked finest cells."""
        shape, parts = mask.shape[1:], []
        edges = np.cumsum(self.cell_counts(shape))[:-1]
        for part, grid, ratio in zip(
            jnp.split(attention, edges, 1), self.grids(shape), self.ratios, strict=True
        ):
            wide = [(0, 0)] + [(0, -n % ratio) for n in shape]
            blocks = jnp.pad(mask, wide).reshape(-1, grid[0], ratio, grid[1], ratio)
            count = blocks.sum((2, 4), keepdims=True)
            share = part.reshape(-1, grid[0], 1, grid[1], 1) / jnp.maximum(count, 1)
            spread = jnp.where(blocks, share, 0)
            spread = spread.reshape(-1, grid[0] * ratio, grid[1] * ratio)
            parts.append(spread[:, : shape[0], : shape[1]])
        return jnp.stack(parts, 1)


def gather_crops(
    planes: Sequence[UInt8[Array, "_ _ 3"]],
    background: UInt8[Array, "3"],
    which: Int[Array, " n"],
    yx: Int[Array, "n 2"],
    crop_px: int,
) -> UInt8[Array, "n {crop_px} {crop_px} 3"]:
    """Crops of one slide that lies on the device, each from the plane of its mpp.

    Equal to `Slide.read` of the same corners. Nothing is padded or clamped: what lies
    off the plane is background.
    """

    def one(which, yx):
        rows, columns = (at + jnp.arange(crop_px) for at in yx)

        def cut(plane):
            # A negative index would count from the end.
            y, x = (
                jnp.where(at < 0, n, at)
                for at, n in zip((rows, columns), plane.shape, strict=False)
            )
            inside = (y < plane.shape[0])[:, None] & (x < plane.shape[1])[None]
            pixels = plane.at[y[:, None], x[None]].get(mode="clip")
            return jnp.where(inside[..., None], pixels, background[None, None])

        return lax.switch(which, [lambda p=plane: cut(p) for plane in planes])

    return jax.vmap(one)(which, yx)


def map_in_chunks(
    encode: Callable, crops: Num[Array, "b n s s 3"], chunk: int | None
) -> Float[Array, "b n d"]:
    """Encodes crops at the memory of one chunk; the way back encodes them again.

    A chunk takes equally many crops of every slide: slides may lie on several devices,
    and a loop over what is split among them would add up gradients wrongly.

    Args:
        encode: crops [m s s 3] -> features [m d], crop by crop.
        chunk: crops at a time, at least one of each slide; None for all, whose
            activations are kept.
    """
    b, n = crops.shape[:2]

    def some(crops):
        features = encode(crops.reshape(-1, *crops.shape[2:]))
        return features.reshape(b, -1, features.shape[-1])

    width = n if chunk is None else max(1, chunk // b)
    if n <= width:
        return some(crops)
    wide = jnp.pad(crops, [(0, 0), (0, -n % width)] + [(0, 0)] * 3)
    parts = jnp.moveaxis(wide.reshape(b, -1, width, *crops.shape[2:]), 1, 0)
    features = lax.map(jax.checkpoint(some, prevent_cse=False), parts)
    return jnp.moveaxis(features, 0, 1).reshape(b, -1, features.shape[-1])[:, :n]
