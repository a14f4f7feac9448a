"""The tiles that a method zoomed into, in their order, and its final attention."""

import os

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from wsi_jax.report.figure import TEXT, distance, save_png, scale_bar
from wsi_jax.report.heatmap import show_percentiles
from wsi_jax.report.overview_panels import Overview, panel_figure
from wsi_jax.report.tile_sheet import tile_sheet

ORDER_MAP = "winter"  # neither of its ends is the colour of a stain


def zoom_figure(
    overview: Overview,
    attention: np.ndarray,
    yx_um: np.ndarray,
    tile_um: int | float,
    order: np.ndarray,
    path: str | os.PathLike,
    *,
    title: str,
    numbered: int = 20,
) -> None:
    """Writes a PNG: the tiles zoomed into, in order, and the attention in the end.

    Attention [n] of the prediction sums to 1 over all tiles, with corners [n 2];
    `order` are indices of those zoomed into [t], of which the first `numbered` show
    their number. ValueError: attention and corners disagree in number.
    """
    panels = panel_figure(overview, 2, title, bars=2)
    left, right = panels.axes
    show_percentiles(panels, attention, yx_um, tile_um, title, "attention percentile")
    share = f"attention: {100 * attention[order].sum():.0f} % on these"
    right.set_title(share, fontsize=10, color=TEXT)

    scale = _order_colours(len(order))
    colours = scale.to_rgba(np.arange(1, len(order) + 1))
    sides = np.full(len(order), float(tile_um))
    panels.draw_squares(left, yx_um[order], sides, colours, numbered)
    count = f"{len(order)} of {len(attention)} tiles zoomed into"
    left.set_title(count, fontsize=10, color=TEXT)
    ticks = np.unique(np.linspace(1, max(len(order), 1), 5).astype(int))
    panels.colour_bar(left, scale, "order", ticks=ticks)
    save_png(panels.figure, path)


def top_zooms(
    pixels: np.ndarray,
    shares: np.ndarray,
    path: str | os.PathLike,
    *,
    title: str,
    mpp: int | float,
    total: int,
) -> None:
    """Writes a PNG of the first of `total` zooms as they were read, numbered.

    Args:
        pixels: uint8 [k h w 3], k >= 1, of `mpp`.
        shares: of the attention, in the end [k].
    """
    title += f": first zooms, {distance(pixels.shape[1] * mpp)} wide, {mpp:g} µm/px"
    labels = [
        f"{i}.  {100 * s:#.2g} % of the attention" for i, s in enumerate(shares, 1)
    ]
    colours = _order_colours(total).to_rgba(np.arange(1, len(pixels) + 1))
    figure = tile_sheet(pixels, labels, title, colours)
    scale_bar(figure.axes[0], pixels.shape[1:3], mpp, share=0.5)
    save_png(figure, path)


def _order_colours(total: int) -> ScalarMappable:
    """Colours of the first to the last zoom."""
    return ScalarMappable(Normalize(1, max(total, 2)), matplotlib.colormaps[ORDER_MAP])
