"""The prediction of one slide, as Python and the commands give it; and of several."""

import html
import io
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from wsi_jax.report.heatmap import heatmap
from wsi_jax.report.overview_panels import Overview
from wsi_jax.report.zoom_figure import zoom_figure
from wsi_jax.slides.slide import SlideError, open_slide

NOTEBOOK_PX = 900  # width of a picture in a notebook


class SlidePrediction(NamedTuple):
    """What a trained run, or several together, predict of one slide.

    Shown in a notebook, it is its heatmap.

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
            zoom, and for several runs together.
        members: probabilities by each of several runs, whose mean is `probabilities`;
            () for one run.
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
    members: tuple[dict[str, float], ...] = ()

    def __repr__(self):
        return f"SlidePrediction({self.title()}, {self.tiles} tiles)"

    def _repr_png_(self) -> bytes | None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "heatmap.png"
            try:
                self.heatmap(path)
            except SlideError:  # the slide has gone; a notebook shows the text then
                return None
            with Image.open(path) as image:
                image.thumbnail((NOTEBOOK_PX, NOTEBOOK_PX))
                small, out = image.convert("RGB").quantize(256), io.BytesIO()
        small.save(out, "PNG", optimize=True)
        return out.getvalue()

    @property
    def spread(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest probability of each class by the members."""
        each = self.members or (self.probabilities,)
        values = {name: [one[name] for one in each] for name in self.probabilities}
        return {name: (min(some), max(some)) for name, some in values.items()}

    def title(self) -> str:
        """Name, label and its probability: "slide_1: tumor (0.931)"."""
        text = f"{self.slide_id}: {self.label} ({self.probabilities[self.label]:.3f}"
        if self.members:
            low, high = self.spread[self.label]
            text += f"; {low:.3f} to {high:.3f} by {len(self.members)} runs"
        return text + ")"

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
        if self.order is None:
            heatmap(*shown, path, title=self.title())
        else:
            zoom_figure(*shown, self.order, path, title=self.title())


class SlidePredictions(list[SlidePrediction]):
    """Predictions of several slides; shown in a notebook, a table of them.

    Attributes:
        refused: why a slide has no prediction, by slide.
    """

    def __init__(
        self,
        predictions: Iterable[SlidePrediction] = (),
        refused: Mapping[str, str] | None = None,
    ):
        super().__init__(predictions)
        self.refused = dict(refused or {})

    def __repr__(self):
        lines = [one.title() for one in self]
        lines += [f"refused: {reason}" for reason in self.refused.values()]
        return "\n".join(lines) or "no slides"

    def _repr_html_(self) -> str:
        names = list(self[0].probabilities) if self else []
        lines = [("slide", "label", *names, "tiles", "note")]
        for one in self:
            p = [f"{value:.3f}" for value in one.probabilities.values()]
            lines.append((one.slide_id, one.label, *p, str(one.tiles), one.note))
        empty = [""] * (len(names) + 2)
        lines += [(name, *empty, reason) for name, reason in self.refused.items()]
        return html_table(lines)


def html_table(lines: Iterable[Iterable[str]]) -> str:
    """A table as HTML; the first line has the names of the columns."""
    tag, rows = "th", []
    for line in lines:
        cells = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line)
        rows.append(f"<tr>{cells}</tr>")
        tag = "td"
    return f"<table>{''.join(rows)}</table>"


def not_finite(slide_id: str) -> str:
    """Why there is no prediction of a slide."""
    return (
        f"{slide_id}: the method's numbers for it are not finite; its features may be "
        "far from all that were learnt from"
    )
