"""Pictures of what the prediction of one slide was drawn from."""

from collections.abc import Sequence

import numpy as np

from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.files import AnyPath
from wsi_jax.report.crop_figure import crop_figure, distinct, top_crops
from wsi_jax.report.heatmap import all_alike, heatmap
from wsi_jax.report.overview_panels import Overview
from wsi_jax.report.tile_sheet import top_tiles
from wsi_jax.report.zoom_figure import top_zooms, zoom_figure
from wsi_jax.run.cohort_predictions import Predicted
from wsi_jax.slides.annotations import AnnotationError
from wsi_jax.slides.masks import read_annotations
from wsi_jax.slides.slide import Slide, open_slide

OVERVIEW_PX = 1000  # longer side of a picture's overview
TOP_TILES = 8


def by_interest(
    predictions: Sequence[Predicted], classes: Sequence[str]
) -> list[Predicted]:
    """Wrong predictions first, then the surest of each class in turn."""
    correct = lambda one: classes[one.called] == one.row.label
    surest = sorted(predictions, key=lambda one: -one.probabilities[one.called])
    wrong = [one for one in surest if not correct(one)]
    right = [one for one in surest if correct(one)]
    rank = {}
    for c in range(len(classes)):
        own = [one.row.slide_id for one in right if one.called == c]
        rank |= {slide_id: (place, -c) for place, slide_id in enumerate(own)}
    return wrong + sorted(right, key=lambda one: rank[one.row.slide_id])


def draw_pictures(
    folder: AnyPath, config, cohort: Cohort, source, one: Predicted
) -> tuple[AnyPath, ...]:
    """Writes a slide's attention on its overview, and the tiles that had most of it.

    The first alone where every tile has the same attention.

    Raises:
        SlideError: the slide cannot be read.
    """
    folder.mkdir(exist_ok=True)
    slide_id = one.row.slide_id
    paths = folder / f"{slide_id}.png", folder / f"{slide_id}_top.png"
    title = f"{slide_id}: {one.row.label}, predicted {cohort.classes[one.called]}"
    with open_slide(one.row.path, one.row.mpp) as slide:
        if one.trace and "maps" in one.trace:
            draw_crops(slide, config, one, title, paths)
        elif one.trace and "order" in one.trace:
            draw_zooms(slide, config, source, one, title, paths)
        else:
            paths = draw_tiles(slide, source, one, title, paths)
    return paths


def read_overview(row: Row, slide: Slide) -> Overview:
    """A slide's overview with the outlines of its lesions."""
    mpp = slide.mpp * max(max(slide.shape) / OVERVIEW_PX, 1.0)
    return Overview(slide.overview(mpp), mpp, read_outlines(row, slide))


def read_outlines(row: Row, slide: Slide) -> list[np.ndarray]:
    """Vertices of a slide's lesions [m 2], (y, x) in um; none if damaged."""
    if not row.annotation_path:
        return []
    try:
        polygons = read_annotations(row.annotation_path, slide.bounds_yx)
    except AnnotationError:  # slides.csv says so
        return []
    return [polygon.vertices * slide.mpp for polygon in polygons]


def draw_tiles(slide, source, one, title, paths):
    """The heatmap of one slide and its most attended tiles."""
    yx, size_px, mpp = source.positions(one.row, slide)
    yx_um, tile_um = yx * slide.mpp, size_px * mpp
    overview = read_overview(one.row, slide)
    heatmap(overview, one.attention, yx_um, tile_um, paths[0], title=title)
    if all_alike(one.attention):  # none is the most attended
        return paths[:1]
    best = np.argsort(-one.attention, kind="stable")[:TOP_TILES]
    tiles = _read_tiles(slide, yx_um[best], tile_um, mpp)
    shown = {"title": one.row.slide_id, "mpp": mpp}
    top_tiles(tiles, one.attention[best], paths[1], **shown)
    return paths


def draw_crops(slide, config, one, title, paths):
    """The crops of one slide, where its attention lies, and the weightiest crops."""
    method, grid = config.method, config.grid
    crops = distinct(*(one.trace[name] for name in ("which", "yx", "weight", "read")))
    crop_figure(
        read_overview(one.row, slide),
        one.trace["maps"],
        crops,
        paths[0],
        title=title,
        cell_um=grid.size_px * grid.mpp,
        mpps=method.mpps,
        crop_px=method.crop_px,
        numbered=TOP_TILES,
    )
    pixels = [
        slide.read(at, method.crop_px, method.mpps[which])
        for which, at in zip(crops.which[:TOP_TILES], crops.yx, strict=False)
    ]
    shown = {"title": one.row.slide_id, "mpps": method.mpps}
    top_crops(np.stack(pixels), crops, paths[1], **shown)


def draw_zooms(slide, config, source, one, title, paths):
    """Where one slide was zoomed into, its attention, and the first of the zooms."""
    yx, size_px, mpp = source.positions(one.row, slide)
    yx_um, tile_um = yx * slide.mpp, size_px * mpp
    order = one.trace["order"][: int(one.trace["steps"])]
    overview = read_overview(one.row, slide)
    zoom_figure(overview, one.attention, yx_um, tile_um, order, paths[0], title=title)
    first, fine = order[:TOP_TILES], config.mpps[0]
    tiles = _read_tiles(slide, yx_um[first], tile_um, fine)
    shown = {"title": one.row.slide_id, "mpp": fine, "total": len(order)}
    top_zooms(tiles, one.attention[first], paths[1], **shown)


def _read_tiles(slide, yx_um, tile_um, mpp) -> np.ndarray:
    """Tiles [k h w 3] of a slide at another resolution."""
    side = round(tile_um / mpp)
    return np.stack([slide.read(at, side, mpp) for at in yx_um / mpp])
