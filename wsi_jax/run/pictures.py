"""What a verdict on one slide rests on, as pictures."""

import pathlib
from collections.abc import Sequence

import numpy as np

from wsi_jax.data.cohort import Cohort
from wsi_jax.report.crop_figure import distinct, looks, top_crops
from wsi_jax.report.heatmap import heatmap
from wsi_jax.report.tiles import top_tiles
from wsi_jax.report.zoom_figure import top_zooms, zooms
from wsi_jax.run.train import Predicted
from wsi_jax.slides.annotations import AnnotationError
from wsi_jax.slides.regions import read_annotations
from wsi_jax.slides.slide import open_slide

OVERVIEW_PX = 1000  # longer side of a heatmap's overview
TOP_TILES = 8


def interesting(verdicts: Sequence[Predicted], cohort: Cohort) -> list[Predicted]:
    """Wrong verdicts first, then the surest of each class in turn."""
    wrong = [v for v in verdicts if cohort.classes[v.called] != v.row.label]
    right = [v for v in verdicts if cohort.classes[v.called] == v.row.label]
    sure = lambda v: -v.probabilities[v.called]
    turns = []
    for c in reversed(range(len(cohort.classes))):
        mine = sorted((v for v in right if v.called == c), key=sure)
        turns += [(place, -c, v) for place, v in enumerate(mine)]
    return sorted(wrong, key=sure) + [v for *_, v in sorted(turns, key=lambda t: t[:2])]


def draw(folder, config, cohort, source, one: Predicted) -> tuple[pathlib.Path, ...]:
    """What one slide's verdict rests on: attention, and what had most of it."""
    folder.mkdir(exist_ok=True)
    called = cohort.classes[one.called]
    paths = (
        folder / f"{one.row.slide_id}.png",
        folder / f"{one.row.slide_id}_top.png",
    )
    title = f"{one.row.slide_id}: {one.row.label}, called {called}"
    with open_slide(one.row.path, one.row.mpp) as slide:
        outlines = read_outlines(one.row, slide)
        if one.trace and "maps" in one.trace:
            draw_looks(slide, config, one, title, outlines, paths)
        elif one.trace and "order" in one.trace:
            draw_zooms(slide, config, source, one, title, outlines, paths)
        else:
            draw_tiles(slide, source, one, title, outlines, paths)
    return paths


def read_outlines(row, slide) -> list[np.ndarray]:
    """Vertices of a slide's lesions, (y, x) in level-0 pixels; none if damaged."""
    if not row.annotation_path:
        return []
    try:
        polygons = read_annotations(row.annotation_path, slide.bounds_yx)
    except AnnotationError:  # slides.csv says so
        return []
    return [polygon.vertices for polygon in polygons]


def draw_tiles(slide, source, one, title, outlines, paths):
    """The heatmap of one slide and its most attended tiles."""
    yx, size_px, mpp = source.positions(one.row, slide)
    scale = max(max(slide.shape) / OVERVIEW_PX, 1.0)
    heatmap(
        slide.overview(slide.mpp * scale),
        one.attention,
        yx,
        size_px * mpp / slide.mpp,
        scale,
        paths[0],
        title=title,
        mpp_level0=slide.mpp,
        label="attention",
        lesions=outlines,
    )
    best = np.argsort(-one.attention, kind="stable")[:TOP_TILES]
    tiles = [slide.read(at, size_px, mpp) for at in yx[best] * slide.mpp / mpp]
    top_tiles(
        np.stack(tiles),
        one.attention[best],
        paths[1],
        title=one.row.slide_id,
        mpp=mpp,
    )


def draw_looks(slide, config, one, title, outlines, paths):
    """The crops of one slide, where its attention lies, and the weightiest crops."""
    method, grid = config.method, config.grid
    crops = distinct(*(one.trace[name] for name in ("which", "yx", "weight", "read")))
    mpp = slide.mpp * max(max(slide.shape) / OVERVIEW_PX, 1.0)
    looks(
        slide.overview(mpp),
        one.trace["maps"],
        crops,
        paths[0],
        title=title,
        mpp=mpp,
        cell_um=grid.size_px * grid.mpp,
        mpps=method.mpps,
        crop_px=method.crop_px,
        numbered=TOP_TILES,
        lesions=[outline * slide.mpp for outline in outlines],
    )
    pixels = [
        slide.read(at, method.crop_px, method.mpps[which])
        for which, at in zip(crops.which[:TOP_TILES], crops.yx, strict=False)
    ]
    top_crops(
        np.stack(pixels), crops, paths[1], title=one.row.slide_id, mpps=method.mpps
    )


def draw_zooms(slide, config, source, one, title, outlines, paths):
    """Where one slide was zoomed into, its attention, and the first of the zooms."""
    yx, size_px, mpp = source.positions(one.row, slide)
    order = one.trace["order"][: int(one.trace["steps"])]
    scale = max(max(slide.shape) / OVERVIEW_PX, 1.0)
    zooms(
        slide.overview(slide.mpp * scale),
        one.attention,
        yx,
        size_px * mpp / slide.mpp,
        scale,
        order,
        paths[0],
        title=title,
        mpp_level0=slide.mpp,
        lesions=outlines,
    )
    first, fine = order[:TOP_TILES], config.mpps[0]
    side = round(size_px * mpp / fine)
    pixels = [slide.read(at, side, fine) for at in yx[first] * slide.mpp / fine]
    top_zooms(
        np.stack(pixels),
        one.attention[first],
        paths[1],
        title=one.row.slide_id,
        mpp=fine,
        total=len(order),
    )
