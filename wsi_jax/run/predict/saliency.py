"""Which pixels of a slide move a class's logit: gradients, averaged over blocks."""

import os
from collections.abc import Iterable

import numpy as np

from wsi_jax.data.cohort import Row
from wsi_jax.report.heatmap import heatmap
from wsi_jax.report.overview_panels import Overview
from wsi_jax.slides.slide import open_slide


def block_means(
    gradients: Iterable[tuple[tuple[int, int], np.ndarray]],
    shape: tuple[int, int],
    block: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean size of a gradient over blocks of pixels.

    Args:
        gradients: ((row, column), gradient [h w 3]) of each tile of a slide.
        shape: (h, w) of the slide, at the um/px of the gradients.
        block: side of a block, in pixels.

    Returns:
        The blocks [n 2] that have any gradient, as (row, column), and the means [n].
    """
    total = np.zeros([-(-n // block) for n in shape])
    for (row, column), gradient in gradients:
        h, w = gradient.shape[:2]
        y, x = (np.arange(i * n, (i + 1) * n) for i, n in ((row, h), (column, w)))
        y, x = y[y < shape[0]], x[x < shape[1]]
        size = np.abs(gradient[: len(y), : len(x)]).sum(-1, dtype=np.float64)
        np.add.at(total, (y[:, None] // block, x[None] // block), size)
    at = np.argwhere(total > 0)
    area = np.minimum((at + 1) * block, shape) - at * block
    return at, total[tuple(at.T)] / area.prod(1)


def draw_saliency(
    path: str | os.PathLike,
    row: Row,
    mpp: float,
    blocks: tuple[np.ndarray, np.ndarray],
    side_um: float,
    title: str,
) -> None:
    """Writes a PNG of the slide and `block_means` over it.

    Args:
        path: where the PNG is written.
        row: the slide.
        mpp: um/px of its level 0.
        blocks: as `block_means` gives them.
        side_um: side of a block.
        title: above the panels.
    """
    at, means = blocks
    with open_slide(row.path, mpp) as slide:
        overview = Overview(slide.overview(side_um), side_um)
    heatmap(overview, means, at * side_um, side_um, path, title=title, label="gradient")
