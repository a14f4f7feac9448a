"""The tiles with the highest scores, side by side."""

import os

import numpy as np

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
    figure = new_figure(1.1 * max(len(order), 3), 1.75)
    figure.suptitle(
        plain(f"{title}: highest {label}"),
        fontsize=11,
        x=0.01,
        ha="left",
        color="#222222",
    )
    row = figure.subplots(1, len(order), squeeze=False)[0]
    for rank, (axes, one) in enumerate(zip(row, order, strict=True), 1):
        axes.imshow(tiles[one])
        axes.set_axis_off()
        axes.set_title(f"{rank}.  {scores[one]:#.3g}", fontsize=9, color="#222222")
    scale_bar(row[0], tiles.shape[1:3], mpp, share=0.5)
    save_png(figure, path)
