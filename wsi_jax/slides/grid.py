"""The fixed grid of tiles on the tissue of a slide."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from wsi_jax import config_fields

# A tile may overstep the slide by this much of a pixel: rounding, not pixels.
_HAIR_PX = 1e-6


@dataclasses.dataclass(kw_only=True)
class Grid:
    """The grid of tiles.

    Attributes:
        mpp: um/px at which tiles are read.
        size_px: side of a tile, in pixels at `mpp`.
        overlap_px: overlap of neighbours, in pixels at `mpp`.
        min_tissue: least fraction of a tile that must be tissue; 0 keeps every tile.
    """

    mpp: float = 0.5
    size_px: int = 256
    overlap_px: int = 0
    min_tissue: float = 0.25

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **{"mpp": (config_fields.POSITIVE, math.inf), "size_px": config_fields.COUNT},
        "min_tissue": (0, 1),
    }

    def validate(self) -> None:
        """Raises FieldError where tiles would not move on."""
        if 0 < self.size_px <= self.overlap_px:
            reason = f"less than size_px={self.size_px}"
            raise config_fields.FieldError("overlap_px", reason)


def tile_grid(
    shape_level0: tuple[int, int],
    slide_mpp: float,
    mask: Bool[np.ndarray, "h w"] | None,
    mask_mpp: float,
    grid: Grid,
    overhang: bool = False,
) -> Int[np.ndarray, "n 2"]:
    """Corners (y, x) of the tiles on tissue, in pixels at `grid.mpp`, row by row.

    The grid starts at the slide's corner, (h, w) level-0 pixels of `slide_mpp`. What is
    left over at the bottom and right, less than one tile, is dropped unless `overhang`:
    then tiles reach beyond the slide, and `min_tissue` is a fraction of what is on it.
    The mask, of `mask_mpp`, starts at the corner too; None keeps every tile.
    """
    config_fields.validate(grid, "config.grid")
    stride = grid.size_px - grid.overlap_px
    # An overhanging tile has at least one pixel whose centre is on the slide.
    inside = 0.5 if overhang else grid.size_px - _HAIR_PX
    y, x = (
        np.arange(0, n * slide_mpp / grid.mpp - inside, stride) for n in shape_level0
    )
    keep = np.ones((len(y), len(x)), bool)
    if mask is not None:
        scale = grid.mpp / mask_mpp
        fraction = _box_means(mask, y * scale, x * scale, grid.size_px * scale)
        keep = fraction >= grid.min_tissue - 1e-9
    i, j = np.nonzero(keep)
    return np.stack([y[i], x[j]], -1).astype(np.int32)


def children(
    yx: Int[np.ndarray, "n 2"], size_px: int, k: int
) -> Int[np.ndarray, "m 2"]:
    """Corners of the k x k tiles at mpp / k that cover each tile at mpp exactly.

    `size_px` is the side of parents and children alike, each in its own pixels. int32
    [n k*k 2]: the children of a parent together, row by row.
    """
    step = np.arange(k, dtype=np.int32) * size_px
    offsets = np.stack(np.meshgrid(step, step, indexing="ij"), -1).reshape(-1, 2)
    return (yx[:, None] * k + offsets).astype(np.int32).reshape(-1, 2)


def level0(
    yx: Int[np.ndarray, "n 2"] | Float[np.ndarray, "n 2"], mpp: float, slide_mpp: float
) -> Int[np.ndarray, "n 2"]:
    """(y, x) in pixels at `mpp` as level-0 pixels, int64, rounded."""
    return np.rint(np.asarray(yx, np.float64) * (mpp / slide_mpp)).astype(np.int64)


def _box_means(mask, top, left, side):
    """Exact fraction of each box [top, top+side) x [left, left+side) that is set.

    A mask pixel is a unit square. The integral image of squares is bilinear within
    each, so interpolating it is exact; of a box only what lies on the mask counts.
    """
    integral = np.zeros(np.add(mask.shape, 1), np.float64)
    np.cumsum(np.cumsum(mask, 0, dtype=np.int64), 1, out=integral[1:, 1:])
    (h, w) = mask.shape
    y0, y1 = np.clip(top, 0, h), np.clip(top + side, 0, h)
    x0, x1 = np.clip(left, 0, w), np.clip(left + side, 0, w)
    rows = _interpolate(integral, y1) - _interpolate(integral, y0)
    sums = _interpolate(rows.T, x1) - _interpolate(rows.T, x0)
    area = np.outer(y1 - y0, x1 - x0)
    return sums.T / np.maximum(area, 1e-12)


def _interpolate(table, at):
    """Rows of `table` at fractional indices."""
    low = np.minimum(np.floor(at).astype(int), len(table) - 2)
    part = (at - low)[:, None]
    return table[low] * (1 - part) + table[low + 1] * part
