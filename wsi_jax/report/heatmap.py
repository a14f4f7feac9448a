"""Scores of tiles over the slide's overview."""

import enum
import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize

from wsi_jax.report.figure import new_figure, plain, save_png, scale_bar

COLOUR_MAP = "coolwarm"
ALPHA = 0.55


class Normalisation(enum.Enum):
    """How a score becomes a colour: its percentile within the slide, or itself."""

    RANK = "rank"
    RAW = "raw"


def score_map(
    scores: np.ndarray,
    yx_level0: np.ndarray,
    tile_px_level0: int | float,
    downsample: int | float,
    shape: tuple[int, int],
) -> np.ndarray:
    """Paints the score of each tile on the overview's pixels; overlaps are averaged.

    Args:
        scores: [n]; NaN paints nothing.
        yx_level0: top-left corner of each tile [n 2], (y, x) in level-0 pixels.
        tile_px_level0: side of a tile in level-0 pixels.
        downsample: level-0 pixels per overview pixel.
        shape: (h, w) of the overview.

    Returns:
        float [h w]; NaN where there is no tile.
    """
    total, count = np.zeros(shape), np.zeros(shape)
    # Both edges are rounded, so neighbours on a grid neither overlap nor leave a gap.
    start = np.rint(yx_level0 / downsample).astype(int)
    stop = np.rint((yx_level0 + tile_px_level0) / downsample).astype(int)
    stop = np.maximum(stop, start + 1)
    for score, (y0, x0), (y1, x1) in zip(scores, start, stop, strict=True):
        if np.isfinite(score):
            total[y0:y1, x0:x1] += score
            count[y0:y1, x0:x1] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def percentiles(scores: np.ndarray) -> np.ndarray:
    """Percentile of each score within the slide [n], 0 to 100; NaN stays NaN.

    The share of scores that are lower, ties counting one half: the middle one is 50.
    """
    known = np.sort(scores[np.isfinite(scores)])
    lower, not_higher = (known.searchsorted(scores, side) for side in ("left", "right"))
    share = (lower + not_higher) / (2 * max(len(known), 1))
    return np.where(np.isfinite(scores), 100 * share, np.nan)


def heatmap(
    overview: np.ndarray,
    scores: np.ndarray,
    yx_level0: np.ndarray,
    tile_px_level0: int | float,
    downsample: int | float,
    path: str | os.PathLike,
    *,
    title: str,
    mpp_level0: int | float,
    label: str = "attention",
    normalisation: Normalisation = Normalisation.RANK,
    limits: tuple[float, float] | None = None,
    tissue: np.ndarray | None = None,
    lesions: Sequence[np.ndarray] = (),
) -> None:
    """Writes a PNG: the overview, and beside it the scores over a grey overview.

    Args:
        overview: uint8 [h w 3].
        scores: [n]; any scale; NaN where a tile has none.
        yx_level0: top-left corner of each tile [n 2], (y, x) in level-0 pixels.
        tile_px_level0: side of a tile in level-0 pixels.
        downsample: level-0 pixels per overview pixel.
        path: of the PNG.
        title: above the panels, e.g. the slide's name.
        mpp_level0: micrometres per level-0 pixel, for the scale bar.
        label: what the scores are, for the colour bar: "attention (class tumor)".
        normalisation: RANK (percentile within the slide) or RAW.
        limits: RAW scores at the ends of the colours; None: the slide's own extremes.
        tissue: bool [h w]; nothing is painted outside.
        lesions: outlines, each [m 2], (y, x) in level-0 pixels.

    Raises:
        ValueError: scores and corners that disagree in number.
    """
    scores = np.asarray(scores, np.float64)
    if yx_level0.shape != (len(scores), 2):
        raise ValueError(
            f"{title}: {len(scores)} scores, but corners are {yx_level0.shape}"
        )
    if normalisation is Normalisation.RANK:
        shown, limits = percentiles(scores), (0.0, 100.0)
        label = f"{label}\npercentile within the slide"
    else:
        shown, known = scores, scores[np.isfinite(scores)]
        if limits is None:
            limits = (known.min(), known.max()) if known.size else (0.0, 1.0)
    colours = ScalarMappable(Normalize(*limits), matplotlib.colormaps[COLOUR_MAP])
    painted = score_map(
        shown, yx_level0, tile_px_level0, downsample, overview.shape[:2]
    )
    if tissue is not None:
        painted = np.where(tissue, painted, np.nan)

    h, w = overview.shape[:2]
    panel = 3.5 * np.array([min(1.0, w / h), min(1.0, h / w)]) * 1.15
    stacked = w > 1.8 * h
    grid = (2, 1) if stacked else (1, 2)
    size = panel * (grid[1], grid[0]) + (1.0, 0.7)
    figure = new_figure(*np.maximum(size, (4.0, 2.5)))
    left, over = figure.subplots(*grid)
    figure.suptitle(plain(title), fontsize=12, x=0.01, ha="left", color="#222222")
    outlines = [np.asarray(outline) / downsample for outline in lesions]
    show(left, overview, outlines)
    show(over, overlay(overview, painted, colours), outlines)
    scale_bar(left, (h, w), mpp_level0 * downsample, share=0.25)
    beside = over.inset_axes((1.02, 0, 0.2 / size[0] * grid[1], 1))
    bar = figure.colorbar(colours, cax=beside, alpha=ALPHA)
    quiet_bar(bar, label)
    save_png(figure, path)


def show(axes, image: np.ndarray, outlines: Sequence[np.ndarray] = ()) -> None:
    """An image in a thin frame, with outlines [m 2], (y, x) in its pixels."""
    h, w = image.shape[:2]
    axes.imshow(image)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#cccccc")
    for outline in outlines:
        y, x = np.vstack([outline, outline[:1]]).T
        axes.plot(x, y, color="white", linewidth=2.2)
        axes.plot(x, y, color="black", linewidth=1.1)
    axes.set(xlim=(-0.5, w - 0.5), ylim=(h - 0.5, -0.5))


def quiet_bar(bar: Colorbar, label: str) -> None:
    """A colour bar with its label and without a frame."""
    bar.set_label(plain(label), fontsize=10)
    bar.ax.tick_params(labelsize=9)
    bar.outline.set_visible(False)


def overlay(
    overview: np.ndarray, painted: np.ndarray, colours: ScalarMappable
) -> np.ndarray:
    """Colours over the overview in grey, lest the stain be taken for a score."""
    grey = overview @ np.array([0.299, 0.587, 0.114])
    grey = 255 - 0.75 * (255 - grey)  # dark tissue would muddy the colours
    there = np.isfinite(painted)
    alpha = np.where(there, ALPHA, 0)[..., None]
    colour = colours.to_rgba(np.where(there, painted, 0))[..., :3] * 255
    mixed = (1 - alpha) * grey[..., None] + alpha * colour
    return np.rint(mixed).astype(np.uint8)
