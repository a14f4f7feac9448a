"""The prediction of one slide, as Python and the commands give it."""

import os
from typing import NamedTuple

import numpy as np

from wsi_jax.report.heatmap import heatmap
from wsi_jax.report.overview_panels import Overview
from wsi_jax.report.zoom_figure import zoom_figure
from wsi_jax.slides.slide import open_slide


class SlidePrediction(NamedTuple):
    """What a trained run predicts of one slide.

    Attributes:
        slide_id: name of the slide.
        label: the predicted class.
        probabilities: probability of each class.
        attention: [n], attention on each tile.
        yx: [n 2], corners of the tiles in level-0 pixels.
        tile_px: side of a tile in level-0 pixels.
        path: file of the slide.
        mpp: um/px of level 0.
        cost: tiles, bytes, seconds.
        tiles: tiles that it rests on.
        note: what of the slide could not be read, or "".
        order: [t], tiles zoomed into, the first first; None for methods that do not
            zoom.
    """

    slide_id: str
    label: str
    probabilities: dict[str, float]
    attention: np.ndarray
    yx: np.ndarray
    tile_px: float
    path: str
    mpp: float
    cost: dict
    tiles: int
    note: str = ""
    order: np.ndarray | None = None

    def heatmap(self, path: str | os.PathLike, mpp: float = 8.0) -> None:
        """Writes the attention over the slide's overview as a PNG.

        The tiles that were zoomed into, in their order, stand beside it.

        Args:
            path: where the PNG is written.
            mpp: um/px of the overview; of a coarser slide, the slide's own.

        Raises:
            SlideError: the overview cannot be read.
        """
        mpp = max(mpp, self.mpp)
        with open_slide(self.path, self.mpp) as slide:
            overview = Overview(slide.overview(mpp), mpp)
        yx_um, tile_um = self.yx * self.mpp, self.tile_px * self.mpp
        shown = overview, self.attention, yx_um, tile_um
        title = f"{self.slide_id}: {self.label} ({self.probabilities[self.label]:.2f})"
        if self.order is None:
            heatmap(*shown, path, title=title)
        else:
            zoom_figure(*shown, self.order, path, title=title)


def not_finite(slide_id: str) -> str:
    """Why there is no prediction of a slide."""
    return (
        f"{slide_id}: the method's numbers for it are not finite; its features may be "
        "far from all that were learnt from"
    )
