"""The scores of a slide's tiles as colours over its overview."""

import os

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from scipy import stats

from wsi_jax.report.figure import save_png
from wsi_jax.report.overview_panels import ALPHA, Overview, Panels, panel_figure

COLOUR_MAP = "coolwarm"


def percentiles(scores: np.ndarray) -> np.ndarray:
    """Percentile of each score within the slide [n], 0 to 100; NaN stays NaN.

    The share of scores that are lower, ties counting one half: the middle one is 50.
    """
    finite, shares = np.isfinite(scores), np.full(len(scores), np.nan)
    ranks = stats.rankdata(scores[finite])
    shares[finite] = 100 * ((ranks - 0.5) / max(len(ranks), 1))
    return shares


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

    Scores [n] are on any scale, NaN where a tile, at its corner [n 2], has none;
    `label` says on the colour bar what they are: "attention (class tumor)". ValueError:
    scores and corners disagree in number.
    """
    panels = panel_figure(overview, 2, title)
    label = f"{label}\npercentile within the slide"
    show_percentiles(panels, scores, yx_um, tile_um, title, label)
    save_png(panels.figure, path)


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
