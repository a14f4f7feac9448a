"""The scores of a slide's tiles as colours over its overview."""

import os

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from scipy import stats

from wsi_jax.report.figure import TEXT, save_png
from wsi_jax.report.overview_panels import (
    ALPHA,
    Overview,
    Panels,
    panel_figure,
    score_map,
)

COLOUR_MAP = "coolwarm"
EVEN_COLOUR = "#1f4e9c"  # of the outline of tiles that count the same


def percentiles(scores: np.ndarray) -> np.ndarray:
    """Percentile of each score within the slide [n], 0 to 100; NaN stays NaN.

    The share of scores that are lower, ties counting one half: the middle one is 50.
    """
    finite, shares = np.isfinite(scores), np.full(len(scores), np.nan)
    ranks = stats.rankdata(scores[finite])
    shares[finite] = 100 * ((ranks - 0.5) / max(len(ranks), 1))
    return shares


def all_alike(scores: np.ndarray) -> bool:
    """Whether no tile counts more than another, as where tiles are averaged."""
    finite = scores[np.isfinite(scores)]
    return bool(finite.size and np.ptp(finite) <= 1e-5 * np.abs(finite).max())


def heatmap(
    overview: Overview,
    scores: np.ndarray,
    yx_um: np.ndarray,
    tile_um: int | float,
    path: str | os.PathLike,
    *,
    title: str,
    label: str = "attention",
) -> None:
    """Writes a PNG: the overview, and beside it the scores' percentiles.

    Where all scores are alike, the outline of the tiles stands there instead.

    Scores [n] are on any scale, NaN where a tile, at its corner [n 2], has none;
    `label` says on the colour bar what they are: "attention (class tumor)". ValueError:
    scores and corners disagree in number.
    """
    panels = panel_figure(overview, 2, title)
    if all_alike(scores):
        shape, axes = overview.image.shape[:2], panels.axes[-1]
        painted = score_map(scores, yx_um, tile_um, overview.mpp, shape)
        outline_tiles(axes, np.isfinite(painted))
    else:
        label = f"{label}\npercentile within the slide"
        show_percentiles(panels, scores, yx_um, tile_um, title, label)
    save_png(panels.figure, path)


def outline_tiles(axes: Axes, covered: np.ndarray) -> None:
    """Outlines the part of a panel that tiles cover [h w], and says why not more."""
    padded = np.pad(covered, 1)  # that tiles at an edge have an outline too
    y, x = (np.arange(-1, side + 1) for side in covered.shape)
    axes.contour(x, y, padded, [0.5], colors=[EVEN_COLOUR], linewidths=1.2)
    text = "tiles read: all count the same"
    axes.set_title(text, fontsize=10, color=TEXT)


def show_percentiles(
    panels: Panels, scores, yx_um, tile_um, title: str, label: str
) -> None:
    """Colours the last panel by percentiles of the scores; arguments as `heatmap`."""
    if yx_um.shape != (len(scores), 2):
        raise ValueError(
            f"{title}: {len(scores)} scores, but corners are {yx_um.shape}"
        )
    shown = percentiles(np.asarray(scores, np.float64))
    colours = ScalarMappable(Normalize(0, 100), matplotlib.colormaps[COLOUR_MAP])
    panels.show_scores(panels.axes[-1], shown, yx_um, tile_um, colours)
    panels.colour_bar(panels.axes[-1], colours, label, alpha=ALPHA)
