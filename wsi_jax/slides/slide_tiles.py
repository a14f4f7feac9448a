"""A slide's tissue and tiles, with their pixels: no config, no run."""

import dataclasses
import io
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw

from wsi_jax import config_fields
from wsi_jax.slides.grid import Grid, level0, tile_grid
from wsi_jax.slides.slide import Slide, open_slide
from wsi_jax.slides.tissue import Tissue, find_background, tissue_mask

READ = 32  # tiles read at once: neighbours share what is decoded
PICTURE_PX = 400
EDGE = 0, 114, 178


class Tile(NamedTuple):
    """One tile.

    Attributes:
        yx: its upper left corner (y, x), in pixels at the tiles' mpp.
        pixels: uint8 [size_px size_px 3].
    """

    yx: Int[np.ndarray, "2"]
    pixels: UInt8[np.ndarray, "h w 3"]


class SlideTiles:
    """The tiles on a slide's tissue; iterating reads their pixels.

    Made by `tile`; shown in a notebook, the slide with its tiles.

    Attributes:
        slide: the slide.
        mpp: um/px of the tiles.
        size_px: side of a tile.
        yx: upper left corners [n 2], int32, in pixels at `mpp`.
        mask: tissue [h w], from the slide's corner.
        mask_mpp: um/px of the mask.
    """

    def __init__(
        self,
        slide: Slide,
        grid: Grid,
        yx: Int[np.ndarray, "n 2"],
        mask: Bool[np.ndarray, "h w"],
        mask_mpp: float,
    ):
        self.slide, self.yx, self.mask, self.mask_mpp = slide, yx, mask, mask_mpp
        self.mpp, self.size_px = grid.mpp, grid.size_px

    @property
    def yx_level0(self) -> Int[np.ndarray, "n 2"]:
        """Upper left corners in pixels of level 0, int64."""
        return level0(self.yx, self.mpp, self.slide.mpp)

    def __len__(self) -> int:
        return len(self.yx)

    def __getitem__(self, index: int) -> Tile:
        yx = self.yx[index]
        return Tile(yx, self.slide.read(yx, self.size_px, self.mpp))

    def __iter__(self) -> Iterator[Tile]:
        side = self.size_px
        for first in range(0, len(self), READ):
            yx = self.yx[first : first + READ]
            tiles = np.empty((len(yx), side, side, 3), np.uint8)
            errors = self.slide.read_tiles(yx, self.mpp, list(tiles))
            for error in filter(None, errors):
                raise error
            yield from map(Tile, yx, tiles)

    def __repr__(self):
        mm2 = self.mask.sum() * (self.mask_mpp / 1000) ** 2
        return (
            f"SlideTiles({self.slide.slide_id}: {len(self)} tiles of {self.size_px} px "
            f"at {self.mpp:g} um/px on {mm2:.3g} mm2 of tissue)"
        )

    def _repr_png_(self) -> bytes:
        own = self.slide.mpp
        mpp = max(own, max(self.slide.shape) * own / PICTURE_PX)
        picture = Image.fromarray(self.slide.overview(mpp))
        draw, side = ImageDraw.Draw(picture), self.size_px * self.mpp / mpp
        for y, x in (self.yx * (self.mpp / mpp)).tolist():
            draw.rectangle((x, y, x + side, y + side), outline=EDGE)
        out = io.BytesIO()
        picture.quantize(256).save(out, "PNG", optimize=True)
        return out.getvalue()


def tile(
    slide: Slide | str | os.PathLike,
    mpp: float = Grid.mpp,
    size_px: int = Grid.size_px,
    *,
    overlap_px: int = Grid.overlap_px,
    min_tissue: float = Grid.min_tissue,
    tissue: Tissue | None = None,
) -> SlideTiles:
    """Finds a slide's tissue and the tiles on it: those that a run would take.

        for yx, pixels in wsi_jax.tile("slide.svs", mpp=1.0): ...

    Args:
        slide: from `open_slide`, or its file.
        mpp: um/px of the tiles.
        size_px: side of a tile, in pixels at `mpp`.
        overlap_px: overlap of neighbours, in pixels at `mpp`.
        min_tissue: least fraction of a tile that must be tissue; 0 keeps every tile.
        tissue: what counts as tissue, and what as background; None for the default.

    Raises:
        ValueError: an argument out of its bounds.
        SlideError: the slide cannot be read, or not at `mpp`.
    """
    slide = slide if isinstance(slide, Slide) else open_slide(slide)
    grid = Grid(mpp=mpp, size_px=size_px, overlap_px=overlap_px, min_tissue=min_tissue)
    try:
        config_fields.validate(grid, "config.grid")
        slide.read((0, 0), 1, mpp)  # raises where the slide is too coarse
    except ValueError as error:  # here a field is an argument
        raise type(error)(str(error).replace("--config.grid.", "")) from None
    tissue = tissue or Tissue()
    tissue = dataclasses.replace(tissue, mpp=max(tissue.mpp, slide.mpp))
    overview = slide.overview(tissue.mpp)
    background = find_background(overview, tissue, slide.fill_rgb)
    tissue = dataclasses.replace(tissue, background=background)
    mask = tissue_mask(overview, tissue)
    yx = tile_grid(slide.shape, slide.mpp, mask, tissue.mpp, grid)
    return SlideTiles(slide, grid, yx, mask, tissue.mpp)
