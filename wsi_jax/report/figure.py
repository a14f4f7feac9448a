"""Figures without global state: to a PNG file, or to SVG that takes the page's ink."""

import io
import os
import re

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from wsi_jax.files import replacing

# Okabe and Ito's colours, told apart by colour-blind eyes, on white and on black.
BLUE, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"
COLOURS = (BLUE, ORANGE, GREEN, SKY, PINK)  # the last is lost on stained tissue
# Stands for the colour of the page's text, which differs between light and dark.
INK = "#010203"
TEXT = "#222222"  # of a PNG, which is on white


def new_figure(width: int | float, height: int | float) -> Figure:
    """An empty figure, in inches, that lays itself out."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """Text as it is: a slide's or class's name with dollar signs is not mathematics."""
    return text.replace("$", r"\$")


def quiet(axes) -> None:
    """Leaves of the frame what carries a scale, in the page's ink."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)
        text.set_fontsize(10)


def svg(figure: Figure) -> str:
    """One `<svg>` element, transparent, its text real text in the page's font."""
    out = io.StringIO()
    keep = {"svg.fonttype": "none", "svg.hashsalt": "wsi_jax"}
    with matplotlib.rc_context(keep):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    return text.replace(INK, "currentColor")


def save_png(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a PNG on white, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=200, facecolor="white")


def scale_bar(axes, shape: tuple[int, int], mpp: int | float, share: float) -> None:
    """Draws a bar of a round length, at most `share` of the width, lower left.

    The axes show an image of `shape` (h, w) pixels, `mpp` micrometres each.
    """
    h, w = shape
    longest = w * mpp * share
    decade = 10 ** np.floor(np.log10(longest))
    length = max(m * decade for m in (1, 2, 5) if m * decade <= longest)
    x, y = 0.04 * w, h - 0.04 * w
    for colour, width in (("white", 5), ("black", 2.5)):
        line = [x, x + length / mpp], [y, y]
        axes.plot(*line, color=colour, lw=width, solid_capstyle="butt")
    axes.annotate(
        distance(length),
        (x, y),
        (0, 4),
        textcoords="offset points",
        fontsize=9,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )
    axes.set(xlim=(-0.5, w - 0.5), ylim=(h - 0.5, -0.5))


def distance(um: int | float) -> str:
    """Micrometres, from a thousand on as millimetres."""
    return f"{um / 1000:.3g} mm" if um >= 1000 else f"{um:.3g} µm"
