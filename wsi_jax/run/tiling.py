"""Tissue and tiles of a slide, or why it cannot be used."""

import dataclasses
import hashlib
import os
from typing import NamedTuple

import numpy as np

from wsi_jax.data.cohort import Row
from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.data.tile_batches import Reading
from wsi_jax.files import content_id
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.nets.trunk import Trunk
from wsi_jax.provenance import config_hash
from wsi_jax.report.contact_sheet import Contact, Picture, shrink
from wsi_jax.slides.annotations import AnnotationError
from wsi_jax.slides.file_faults import read_file
from wsi_jax.slides.grid import Grid, children, tile_grid
from wsi_jax.slides.masks import read_annotations, read_mask
from wsi_jax.slides.slide import Slide, SlideError, open_slide, shape_at
from wsi_jax.slides.stain import Stain, measure_stain
from wsi_jax.slides.tissue import (
    Background,
    Source,
    Tissue,
    find_background,
    tissue_mask,
)


@dataclasses.dataclass(kw_only=True)
class Tiling:
    """Which tiles of a slide are encoded, and with what.

    Attributes:
        grid: mpp, size and overlap of the tiles.
        tissue: how tissue is distinguished from background.
        encoder: the encoder of each tile.
        overhang: whether tiles may reach beyond the slide.
        reads: um/px at which slides will be read besides the grid's.
        children: k, to encode in place of each tile the k x k children that fill it:
            tiles of the same side in pixels at grid.mpp / k, row by row.
    """

    grid: Grid = dataclasses.field(default_factory=Grid)
    tissue: Tissue = dataclasses.field(default_factory=Tissue)
    encoder: Trunk = dataclasses.field(default_factory=Encoder)
    overhang: bool = False
    reads: tuple[float, ...] = ()
    children: int = 1

    @property
    def tiles(self) -> Grid:
        """Grid of what is encoded: of the tiles, or of their children."""
        return dataclasses.replace(self.grid, mpp=self.grid.mpp / self.children)

    def with_children(self, slide: "TiledSlide") -> "TiledSlide":
        """A slide with the children of its tiles in place of the tiles, if k > 1."""
        yx = children(slide.yx, self.grid.size_px, self.children)
        return slide._replace(yx=yx)

    def fingerprint(self) -> str:
        """Fingerprint of everything that decides a slide's features."""
        finer = [self.children] if self.children > 1 else []
        return config_hash(self.grid, self.tissue, self.encoder.describe(), *finer)

    def folder(self) -> str:
        """Folder of the feature files: tiles, then encoder, as TRIDENT names them."""
        g = self.tiles
        grid = f"{g.mpp:g}mpp_{g.size_px}px_{g.overlap_px}px_overlap"
        grid += "_children" if self.children > 1 else ""
        return f"{grid}/features_{self.encoder.name}_{self.fingerprint()[:8]}"


class TiledSlide(NamedTuple):
    """A slide's tissue and tiles, or why there are none.

    Attributes:
        row: line of the manifest.
        yx: corners of the tiles [n 2], in pixels at the grid's mpp.
        mpp: um/px of level 0.
        mpp_source: where it comes from: "manifest", "ome", "property" or "tiff".
        shape: (h, w) of level 0.
        tissue_mm2: area of tissue.
        reason: why the slide is refused, or "".
        picture: the slide and its tissue, small; None where it cannot be read.
        content: fingerprint of the file: another file of this name has other features.
        note: what else is wrong; the slide is used all the same.
        background: "bright" or "dark"; "" where it cannot be read.
        stain: colour of the tissue; None where none was read.
    """

    row: Row
    yx: np.ndarray
    mpp: float = 0.0
    mpp_source: str = ""
    shape: tuple[int, int] = (0, 0)
    tissue_mm2: float = 0.0
    reason: str = ""
    picture: Picture | None = None
    content: str = ""
    note: str = ""
    background: str = ""
    stain: Stain | None = None

    def fingerprint(self, settings: str) -> str:
        """Fingerprint of the slide's features: settings, file, mpp and tiles."""
        tiles = hashlib.sha256(self.yx.tobytes()).hexdigest()
        return config_hash(settings, self.content, self.mpp, tiles)

    def contact(self, reason: str) -> Contact:
        """The slide on a contact sheet; `reason` says why it is refused, or ""."""
        mpp = f"{self.mpp:.3g} um/px ({self.mpp_source})"
        summary = f"{len(self.yx)} tiles, {self.tissue_mm2:.3g} mm2, {mpp}"
        for path in (os.path.abspath(self.row.path), self.row.path):
            reason = reason.replace(path, os.path.basename(path))  # for want of room
        return Contact(self.row.slide_id, self.picture, summary, reason)


def tile_slide(row: Row, tiling: Tiling) -> TiledSlide:
    """Finds a slide's tissue and the tiles on it; an unreadable slide has a reason."""
    nothing = TiledSlide(row, np.zeros((0, 2), np.int32))
    refused = lambda message: nothing._replace(reason=_with_id(row, message))
    try:
        with open_slide(row.path, row.mpp) as slide:
            for mpp in (tiling.grid.mpp, tiling.tiles.mpp, *tiling.reads):
                slide.read((0, 0), 1, mpp)  # raises where the slide is too coarse
            # Tissue is found at the finest mpp there is where that is coarse already.
            tissue = dataclasses.replace(
                tiling.tissue, mpp=max(tiling.tissue.mpp, slide.mpp)
            )
            overview = slide.overview(tissue.mpp)
            background = find_background(overview, tissue, slide.fill_rgb)
            tissue = dataclasses.replace(tissue, background=background)
            mask = _tissue(row, slide, overview, tissue)
        content = read_file(row.path, lambda: content_id(row.path))
    except (SlideError, AnnotationError, OSError) as error:
        return refused(str(error))
    except Exception as error:  # one bad slide stops no other
        kind = type(error).__name__
        return refused(f"cannot be read ({kind}: {error}); leave it out")
    grid = tiling.grid
    yx = tile_grid(slide.shape, slide.mpp, mask, tissue.mpp, grid, tiling.overhang)
    area = float(mask.sum()) * (tissue.mpp / 1000) ** 2
    dark = background is Background.DARK
    return TiledSlide(
        row,
        yx,
        mpp=slide.mpp,
        mpp_source=slide.mpp_source,
        shape=slide.shape,
        tissue_mm2=area,
        reason="" if len(yx) else _with_id(row, _no_tissue(area, grid)),
        picture=shrink(overview, mask),
        content=content,
        note=_note(row, slide),
        background=background.value,
        stain=measure_stain(overview, mask, dark) if mask.any() else None,
    )


def as_streamed_slide(slide: TiledSlide, grid: Grid, reading: Reading) -> StreamedSlide:
    """A slide as streaming methods read it; its tissue is its tiles."""
    row = slide.row
    shape = shape_at(slide.shape, slide.mpp, grid.mpp)
    return StreamedSlide(
        row.path, row.mpp, slide.yx, grid.size_px, grid.mpp, reading.threads, shape
    )


def _no_tissue(area_mm2: float, grid: Grid) -> str:
    """Why a slide without tiles is refused."""
    return (
        f"no tissue ({area_mm2:.3g} mm2 found, no tile of {grid.size_px} px at "
        f"{grid.mpp:g} um/px with {grid.min_tissue:.0%} of it); lower "
        "--config.grid.min_tissue or --config.tissue.min_area_um2, or leave the slide "
        "out"
    )


def _note(row: Row, slide: Slide) -> str:
    """What contradicts the slide's mpp, and what is wrong with its annotations, which
    only the report shows."""
    notes = [slide.mpp_note] if slide.mpp_note else []
    try:
        if row.annotation_path:
            read_annotations(row.annotation_path)
    except AnnotationError as error:
        notes.append(str(error))
    return _with_id(row, "; ".join(notes)) if notes else ""


def _tissue(row: Row, slide: Slide, overview: np.ndarray, tissue: Tissue) -> np.ndarray:
    """Tissue on the overview [h w], computed or from the manifest's mask."""
    if tissue.source is Source.AUTO:
        return tissue_mask(overview, tissue)
    if not row.mask_path:
        raise SlideError(
            f"{row.slide_id}: no mask; give one in the CSV's mask_path column "
            "(predict(mask=...) in Python), or set --config.tissue.source=AUTO"
        )
    shape = overview.shape[:2]
    plane = slide.shape, slide.mpp, slide.bounds_yx
    return read_mask(row.mask_path, shape, tissue.mpp, *plane)


def _with_id(row: Row, message: str) -> str:
    """A message that begins with the slide's name."""
    prefix = f"{row.slide_id}: "
    return prefix + message.removeprefix(prefix)
