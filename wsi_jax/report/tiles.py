"""The tiles with the highest scores, side by side."""

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from wsi_jax.report.figure import new_figure, plain, save_png, scale_bar


def top_tiles(
    tiles: np.ndarray,
    scores: np.ndarray,
    path: str | os.PathLike,
    *,
    title: str,
    mpp: int | float,
    label: str = "attention",
) -> None:
    """Writes a PNG strip of tiles, highest score first, each with rank and score.

    Args:
        tiles: uint8 [k h w 3], k >= 1.
        scores: [k].
        path: of the PNG.
        title: above the strip.
        mpp: micrometres per pixel of the tiles.
        label: what the scores are.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    labels = [f"{rank}.  {scores[one]:#.3g}" for rank, one in enumerate(order, 1)]
    figure = strip(tiles[order], labels, f"{title}: highest {label}")
    scale_bar(figure.axes[0], tiles.shape[1:3], mpp, share=0.5)
    save_png(figure, path)


def strip(
    tiles: np.ndarray,
    labels: Sequence[str],
    title: str,
    colours: Sequence[str] | None = None,
) -> Figure:
    """Tiles [k h w 3] in a row, each with a label and, given colours, a frame."""
    lines = max(label.count("\n") for label in labels)
    figure = new_figure(1.1 * max(len(tiles), 3), 1.62 + 0.15 * lines)
    figure.suptitle(plain(title), fontsize=11, x=0.01, ha="left", color="#222222")
    row = figure.subplots(1, len(tiles), squeeze=False)[0]
    for k, (axes, tile, label) in enumerate(zip(row, tiles, labels, strict=True)):
        axes.imshow(tile)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(colours is not None)
        if colours is not None:
            axes.spines[:].set(color=colours[k], linewidth=2)
        axes.set_title(label, fontsize=9, color="#222222")
    return figure
