"""What of a slide is encoded: tissue, tiles, or why there are none."""

import concurrent.futures
import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from wsi_jax.data.cohort import Row
from wsi_jax.data.features import config_hash
from wsi_jax.data.streamed_slide import StreamedSlide
from wsi_jax.data.tiles import Reading
from wsi_jax.files import content_id
from wsi_jax.nets.encoder import Encoder
from wsi_jax.nets.trunk import Trunk
from wsi_jax.report.contact import Contact, Picture, shrink
from wsi_jax.slides.annotations import AnnotationError
from wsi_jax.slides.grid import Grid, children, tile_grid
from wsi_jax.slides.regions import read_annotations, read_mask
from wsi_jax.slides.slide import SlideError, open_slide
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
        grid: of the tiles.
        tissue: how tissue is told from background.
        encoder: of each tile.
        overhang: also those that reach beyond the slide.
        reads: um/px at which slides will be read besides the grid's.
        children: k, where not the tiles of the grid are encoded but the k x k of their
            side, at grid.mpp / k, that fill each of them: row by row, one tile's after
            another's.
    """

    grid: Grid = dataclasses.field(default_factory=Grid)
    tissue: Tissue = dataclasses.field(default_factory=Tissue)
    encoder: Trunk = dataclasses.field(default_factory=Encoder)
    overhang: bool = False
    reads: tuple[float, ...] = ()
    children: int = 1

    @property
    def tiles(self) -> Grid:
        """As the grid, of what is encoded."""
        return dataclasses.replace(self.grid, mpp=self.grid.mpp / self.children)

    def fingerprint(self) -> str:
        """Of everything that decides a slide's features."""
        finer = [self.children] if self.children > 1 else []
        return config_hash(self.grid, self.tissue, self.encoder.describe(), *finer)

    def folder(self) -> str:
        """Of the feature files: tiles, then encoder, as TRIDENT names them."""
        g = self.tiles
        grid = f"{g.mpp:g}mpp_{g.size_px}px_{g.overlap_px}px_overlap"
        grid += "_children" if self.children > 1 else ""
        return f"{grid}/features_{self.encoder.name}_{self.fingerprint()[:8]}"


class TiledSlide(NamedTuple):
    """A slide's tissue and tiles, or why there are none.

    Attributes:
        row: of the manifest.
        yx: corners of what is encoded [n 2], in pixels at the mpp of `tiling.tiles`.
        mpp: of level 0.
        mpp_source: "manifest", "ome", "property" or "tiff".
        shape: (h, w) of level 0.
        tissue_mm2: area of tissue.
        reason: why the slide is refused, or "".
        picture: of the slide and its tissue, small; None where it cannot be read.
        content: of its file: features of another file of this name are not its own.
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
        """Of the slide's features: of `settings`, its file, its mpp and its tiles."""
        tiles = hashlib.sha256(self.yx.tobytes()).hexdigest()
        return config_hash(settings, self.content, self.mpp, tiles)

    def contact(self, reason: str) -> Contact:
        """The slide on a contact sheet; `reason` is why it is refused, or ""."""
        mpp = f"{self.mpp:.3g} um/px ({self.mpp_source})"
        told = f"{len(self.yx)} tiles, {self.tissue_mm2:.3g} mm2, {mpp}"
        for path in (os.path.abspath(self.row.path), self.row.path):
            reason = reason.replace(path, os.path.basename(path))  # for want of room
        return Contact(self.row.slide_id, self.picture, told, reason)


def tile_slide(row: Row, tiling: Tiling) -> TiledSlide:
    """Finds a slide's tissue and the tiles on it; an unreadable slide has a reason."""
    nothing = TiledSlide(row, np.zeros((0, 2), np.int32))
    if not os.path.exists(row.path):
        missing = f"{row.slide_id}: no file {row.path}; mend its path"
        return nothing._replace(reason=missing)
    try:
        with open_slide(row.path, row.mpp) as slide:
            # Can they be had at all?
            for mpp in (tiling.grid.mpp, tiling.tiles.mpp, *tiling.reads):
                slide.read((0, 0), 1, mpp)
            # Tissue is told from the finest there is where that is coarse already.
            tissue = dataclasses.replace(
                tiling.tissue, mpp=max(tiling.tissue.mpp, slide.mpp)
            )
            overview = slide.overview(tissue.mpp)
            background = find_background(overview, tissue, slide.fill_rgb)
            tissue = dataclasses.replace(tissue, background=background)
            mask = _tissue(row, slide, overview, tissue)
        content = content_id(row.path)
    except (SlideError, AnnotationError, OSError) as error:
        return nothing._replace(reason=_naming(row, str(error)))
    except Exception as error:  # one bad slide stops no other
        message = f"cannot be read ({type(error).__name__}: {error}); leave it out"
        return nothing._replace(reason=_naming(row, message))
    yx = tile_grid(
        slide.shape, slide.mpp, mask, tissue.mpp, tiling.grid, tiling.overhang
    )
    yx = children(yx, tiling.grid.size_px, tiling.children)
    area = float(mask.sum()) * (tissue.mpp / 1000) ** 2
    reason = ""
    if not len(yx):
        reason = (
            f"{row.slide_id}: no tissue ({area:.3g} mm2 found, no tile of "
            f"{tiling.grid.size_px} px at {tiling.grid.mpp:g} um/px with "
            f"{tiling.grid.min_tissue:.0%} of it); lower --config.grid.min_tissue "
            "or --config.tissue.min_area_um2, or leave the slide out"
        )
    stain = None
    if mask.any():
        stain = measure_stain(overview, mask, background is Background.DARK)
    return TiledSlide(
        row, yx, slide.mpp, slide.mpp_source, slide.shape, area, reason,
        shrink(overview, mask), content, _note(row, slide), background.value, stain,
    )  # fmt: skip


def view(found: TiledSlide, grid: Grid, reading: Reading) -> StreamedSlide:
    """A slide as streaming methods read it, its tissue the tiles of the slide."""
    row = found.row
    return StreamedSlide(
        row.path, row.mpp, found.yx, grid.size_px, grid.mpp, reading.threads
    )


def _note(row, slide) -> str:
    """What contradicts the slide's mpp, and what is wrong with its outlined lesions,
    which only the report shows."""
    notes = [slide.mpp_note] if slide.mpp_note else []
    try:
        if row.annotation_path:
            read_annotations(row.annotation_path)
    except AnnotationError as error:
        notes.append(str(error))
    return _naming(row, "; ".join(notes)) if notes else ""


def _tissue(row, slide, overview, tissue) -> np.ndarray:
    """Where tissue is [h w], computed or from the manifest's mask."""
    if tissue.source is Source.AUTO:
        return tissue_mask(overview, tissue)
    if not row.mask_path:
        raise SlideError(
            f"{row.slide_id}: no mask; give one in the CSV's mask_path column "
            "(predict(mask=...) in Python), or set --config.tissue.source=AUTO"
        )
    shape = overview.shape[:2]
    where = slide.shape, slide.mpp, slide.bounds_yx
    return read_mask(row.mask_path, shape, tissue.mpp, *where)


def _naming(row, message):
    """A message that names its slide, not a file of it alone."""
    name = f"{row.slide_id}: "
    return name + message.removeprefix(name)


def tile_slides(
    rows: Sequence[Row], tiling: Tiling, threads: int, done: Callable
) -> list[TiledSlide]:
    """Surveys slides side by side; calls `done()` after each."""

    def one(row):
        found = tile_slide(row, tiling)
        done()
        return found

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, rows))
