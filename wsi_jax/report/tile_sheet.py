"""The tiles with the highest scores, side by side."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from wsi_jax.report.figure import TEXT, new_figure, plain, save_png, scale_bar
from wsi_jax.report.overview_panels import show

COLUMNS = 4


def top_tiles(
    tiles: np.ndarray,
    scores: np.ndarray,
    path: str | os.PathLike,
    *,
    title: str,
    mpp: int | float,
    label: str = "attention",
) -> None:
    """Writes a PNG of tiles [k h w 3], highest score first, with ranks and scores."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    labels = [f"{rank}.  {scores[one]:#.3g}" for rank, one in enumerate(order, 1)]
    figure = tile_sheet(tiles[order], labels, f"{title}: highest {label}")
    scale_bar(figure.axes[0], tiles.shape[1:3], mpp, share=0.5)
    save_png(figure, path)


def tile_sheet(
    tiles: np.ndarray,
    labels: Sequence[str],
    title: str,
    colours: Sequence | np.ndarray | None = None,
) -> Figure:
    """Tiles [k h w 3] in rows, each with a label and, given colours, a frame."""
    k = len(tiles)
    rows = -(-k // COLUMNS)
    lines = 1 + max(label.count("\n") for label in labels)
    figure = new_figure(2.0 * COLUMNS, (2.05 + 0.2 * lines) * rows + 0.45)
    figure.suptitle(plain(title), fontsize=11, x=0.01, ha="left", color=TEXT)
    every = figure.subplots(rows, COLUMNS, squeeze=False).reshape(-1)
    for axes in every[k:]:
        axes.remove()
    for i, (axes, tile, label) in enumerate(zip(every, tiles, labels, strict=False)):
        show(axes, tile)
        axes.set_title(label, fontsize=10, color=TEXT)
        if colours is not None:
            axes.spines[:].set(color=colours[i], linewidth=2.5)
    return figure
