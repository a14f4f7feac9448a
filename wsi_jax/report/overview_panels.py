"""Panels of a slide's overview: lesion outlines, scores as colours, numbered squares.

Positions are (y, x) in micrometres from the slide's upper left corner.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from wsi_jax.report.figure import TEXT, new_figure, plain, scale_bar

WIDTH, HEIGHT = 10.0, 6.4  # inches that the panels of a figure may take
TITLE_WIDTH = 2.4  # inches that a panel's title takes
DIGIT = 0.13  # height of a number, in inches
ALPHA = 0.55  # of the colours of scores
CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])


class Overview(NamedTuple):
    """A slide at low resolution."""

    image: np.ndarray  # uint8 [h w 3]
    mpp: float  # um/px of the image
    lesions: Sequence[np.ndarray] = ()  # outlines, each [m 2]

    def pixels(self, yx_um: np.ndarray) -> np.ndarray:
        """Positions [k 2] as matplotlib's (x, y) on the image."""
        # Pixel i of an image lies from i - 1/2 to i + 1/2.
        return np.asarray(yx_um)[:, ::-1] / self.mpp - 0.5


class Panels(NamedTuple):
    """A figure, with title and legend, of panels that show one overview.

    Positions are upper left corners of squares (y, x) [k 2]; they and sides are in um.
    """

    figure: Figure
    axes: list[Axes]
    overview: Overview
    inch: float  # per pixel of the overview

    def show_scores(
        self,
        axes: Axes,
        scores: np.ndarray,
        yx_um: np.ndarray,
        tile_um: int | float,
        colours: ScalarMappable,
    ) -> None:
        """Colours a panel by the tiles' scores, over the overview in grey.

        Grey, as the stain could be taken for a score.
        """
        image, mpp = self.overview.image, self.overview.mpp
        painted = score_map(scores, yx_um, tile_um, mpp, image.shape[:2])
        grey = image @ np.array([0.299, 0.587, 0.114])
        grey = 255 - 0.75 * (255 - grey)  # dark tissue would muddy the colours
        has_score = np.isfinite(painted)
        alpha = np.where(has_score, ALPHA, 0)[..., None]
        colour = colours.to_rgba(np.where(has_score, painted, 0))[..., :3] * 255
        mixed = (1 - alpha) * grey[..., None] + alpha * colour
        axes.images[0].set_data(np.rint(mixed).astype(np.uint8))

    def colour_bar(
        self, axes: Axes, colours: ScalarMappable, label: str, **kwargs
    ) -> None:
        """A colour bar beside a panel, as high as it."""
        width = axes.get_xlim()[1] * self.inch
        place = axes.inset_axes((1.02, 0, 0.2 / width, 1))
        bar = self.figure.colorbar(colours, cax=place, **kwargs)
        bar.set_label(plain(label), fontsize=10)
        bar.ax.tick_params(labelsize=9)
        bar.outline.set_visible(False)

    def draw_squares(
        self,
        axes: Axes,
        yx_um: np.ndarray,
        sides_um: np.ndarray,
        colours: Sequence | np.ndarray,
        numbered: int,
        weights: np.ndarray | None = None,
    ) -> None:
        """Outlines squares, the heavy ones with stronger lines; small ones are filled.

        The first of them are numbered. All weights [k] are alike by default.
        """
        sides, inch = sides_um / self.overview.mpp, self.inch
        middles = self.overview.pixels(yx_um + sides_um[:, None] / 2)
        weights = np.ones(len(sides)) if weights is None else weights
        strength = weights / max(weights.max(initial=0), 1e-9)
        points = 72 * inch * sides
        width = np.clip(points / 8, 1.0, 1.0 + 1.6 * strength)
        filled = points < 4.5 * width
        rgba = to_rgba_array(colours)
        rgba[:, 3] = np.where(filled, 0.7, 0.4 + 0.6 * strength)
        # Within the square, as neighbours would cover each other's lines.
        half = sides / 2 - np.where(filled, 0, width / 144 / inch)
        corners = middles[:, None] + half[:, None, None] * CORNERS
        # Wide ones below, then light ones, then later ones: none hides one that counts.
        for k in np.lexsort([-np.arange(len(sides)), weights, -sides]):
            styles = [
                {"facecolors": "none", "edgecolors": colour, "linewidths": wide}
                for colour, wide in (("white", 1.8 * width[k]), (rgba[k], width[k]))
            ]
            if filled[k]:
                styles = [{"facecolors": rgba[k], "linewidths": 0}]
            for style in styles:
                square = PolyCollection([corners[k]], **style)
                axes.add_collection(square, autolim=False)
        first = slice(min(numbered, len(sides)))
        _number_squares(axes, middles[first], sides[first], rgba[first, :3], inch)


def panel_grid(n: int, shape: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """(rows, columns, (width, height) in inches) of n panels of an image [h w].

    The grid in which the panels are largest; an empty place counts against it.
    """
    h, w = shape
    best = None
    for rows in range(1, n + 1):
        columns = -(-n // rows)
        scale = min(WIDTH / columns / w, HEIGHT / rows / h)
        score = scale**2 * n / (rows * columns)
        if best is None or score > best[0]:
            best = score, (rows, columns, scale * np.array([w, h]))
    return best[1]


def panel_figure(
    overview: Overview,
    n: int,
    title: str,
    *,
    bars: int = 1,
    legend: Sequence[Line2D] = (),
) -> Panels:
    """A figure of n panels of an overview, with room for colour bars.

    The first panel has the scale bar; lesions are outlined in all of them.
    """
    h, w = overview.image.shape[:2]
    rows, columns, size = panel_grid(n, (h, w))
    width = (
        columns * (max(size[0], TITLE_WIDTH) + 0.1) + 0.85 * min(bars, columns) + 0.1
    )
    if len(overview.lesions):
        legend = [*legend, Line2D([], [], color="black", lw=1.1, label="lesion")]
    abreast = int(width / 2.5)
    lines = -(-len(legend) // abreast)
    figure = new_figure(width, rows * (size[1] + 0.3) + 0.4 + 0.25 * lines)
    figure.suptitle(plain(title), fontsize=12, x=0.01, ha="left", color=TEXT)
    axes = list(figure.subplots(rows, columns, squeeze=False).reshape(-1))
    for empty in axes[n:]:
        empty.remove()
    for one in axes[:n]:
        show(one, overview.image)
        for outline in overview.lesions:
            x, y = overview.pixels(np.vstack([outline, outline[:1]])).T
            one.plot(x, y, color="white", linewidth=2.2)
            one.plot(x, y, color="black", linewidth=1.1)
        one.set(xlim=(-0.5, w - 0.5), ylim=(h - 0.5, -0.5))
    scale_bar(axes[0], (h, w), overview.mpp, share=0.25)
    if legend:
        where = {"loc": "outside lower left", "ncols": abreast, "frameon": False}
        figure.legend(handles=legend, fontsize=9, labelcolor=TEXT, **where)
    return Panels(figure, axes[:n], overview, size[0] / w)


def show(axes: Axes, image: np.ndarray) -> None:
    """An image in a thin frame, without ticks."""
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#cccccc")


def score_map(
    scores: np.ndarray,
    yx_um: np.ndarray,
    tile_um: int | float,
    mpp: int | float,
    shape: tuple[int, int],
) -> np.ndarray:
    """Paints the score of each tile on the overview's pixels; overlaps are averaged.

    Takes scores [n], of which NaN paints nothing, corners [n 2], the side of a tile,
    and um/px and (h, w) of the overview. float [h w]; NaN where there is no tile.
    """
    total, count = np.zeros(shape), np.zeros(shape)
    # Both edges are rounded, so neighbours on a grid neither overlap nor leave a gap.
    start = np.rint(yx_um / mpp).astype(int)
    stop = np.maximum(np.rint((yx_um + tile_um) / mpp).astype(int), start + 1)
    for score, (y0, x0), (y1, x1) in zip(scores, start, stop, strict=True):
        if np.isfinite(score):
            total[y0:y1, x0:x1] += score
            count[y0:y1, x0:x1] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _number_squares(axes, middles, sides, colours, inch) -> None:
    """Numbers squares from 1 on, each in one of its corners or beside it, on a line.

    One for which there is no room is left out. `middles` (x, y) [k 2] and `sides` [k]
    are in pixels of the overview, `colours` RGB [k 3].
    """
    high = DIGIT / inch
    halo = [withStroke(linewidth=2.5, foreground="white")]
    (x0, x1), (y1, y0) = axes.get_xlim(), axes.get_ylim()
    low, most = np.array([x0, y0]), np.array([x1, y1])
    scale = np.array([0.15 * (x1 - x0) + high, 1.5 * high])  # half of the scale bar
    taken = [(np.array([x0, y1]) + scale * (1, -1), scale)]
    small = sides < 1.8 * high
    taken += [(middles[i], np.full(2, sides[i] / 2)) for i in np.flatnonzero(small)]
    turns = np.linspace(0, 2 * np.pi, 16, endpoint=False) - np.pi / 4
    directions = np.stack([np.cos(turns), np.sin(turns)], -1)
    away = high * np.arange(0.8, 8.0, 0.5)[:, None, None]
    for i, (middle, side) in enumerate(zip(middles, sides, strict=True)):
        half = high * np.array([0.4 + 0.4 * len(f"{i + 1}"), 1]) / 2
        free = lambda spot, half=half: (
            (spot - half >= low).all()
            and (spot + half <= most).all()
            and all((abs(spot - a) >= half + b).any() for a, b in taken)
        )
        inner = () if small[i] else middle + (side / 2 - 1.2 * half) * CORNERS
        beside = middle + ((side / 2 + away) * directions).reshape(-1, 2)
        spot = next(filter(free, [*inner, *beside]), None)
        if spot is None:
            continue
        taken.append((spot, half))
        colour = 0.75 * colours[i]  # dark enough to be read
        if (abs(spot - middle) > side / 2).any():
            line = zip(middle, spot, strict=True)
            axes.plot(*line, color=colour, lw=1, path_effects=halo, zorder=3)
            axes.plot(*middle, "s", color=colour, ms=2.5, zorder=4)
        text = {"ha": "center", "va": "center", "fontsize": 9, "fontweight": "bold"}
        axes.text(*spot, f"{i + 1}", **text, color=colour, path_effects=halo, zorder=5)
