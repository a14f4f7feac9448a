"""Where a method zoomed, in which order, and what its attention made of it."""

import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from wsi_jax.report.crop_figure import panels
from wsi_jax.report.figure import distance, new_figure, plain, save_png, scale_bar
from wsi_jax.report.heatmap import (
    ALPHA,
    COLOUR_MAP,
    overlay,
    percentiles,
    quiet_bar,
    score_map,
    show,
)

ORDER_MAP = "winter"  # neither of its ends is the colour of a stain
DIGIT = 0.13  # inches that a number is high
LEAST = 2.6  # inches of a panel, for its title's sake
DARK = "#222222"
HEAD = {"fontsize": 10, "color": DARK}


def zooms(
    overview: np.ndarray,
    attention: np.ndarray,
    yx_level0: np.ndarray,
    tile_px_level0: int | float,
    downsample: int | float,
    order: np.ndarray,
    path: str | os.PathLike,
    *,
    title: str,
    mpp_level0: int | float,
    numbered: int = 20,
    lesions: Sequence[np.ndarray] = (),
) -> None:
    """Writes a PNG: the tiles zoomed into, in order, and the attention in the end.

    Args:
        overview: uint8 [h w 3].
        attention: of the verdict [n], summing to 1.
        yx_level0, tile_px_level0, downsample, lesions: as `heatmap.heatmap`.
        order: tiles zoomed into [t], the first first.
        path: of the PNG.
        title: above the panels, e.g. the slide's name.
        mpp_level0: micrometres per level-0 pixel, for the scale bar.
        numbered: how many of them, the first, show their number.

    Raises:
        ValueError: attention and corners that disagree in number.
    """
    if yx_level0.shape != (len(attention), 2):
        raise ValueError(
            f"{title}: {len(attention)} tiles, but corners are {yx_level0.shape}"
        )
    h, w = overview.shape[:2]
    rows, columns, size = panels(2, (h, w))
    width = columns * (max(size[0], LEAST) + 0.95) + 0.1
    figure = new_figure(width, rows * (size[1] + 0.3) + 0.4 + 0.25 * bool(lesions))
    figure.suptitle(plain(title), fontsize=12, x=0.01, ha="left", color=DARK)
    left, right = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    outlines = [np.asarray(lesion) / downsample for lesion in lesions]

    show(left, overview, outlines)
    scale, inch = _scale(len(order)), size[0] / w
    side = tile_px_level0 / downsample
    colours = scale.to_rgba(np.arange(1, len(order) + 1))
    # Pixel i of an image lies from i - 1/2 to i + 1/2.
    middles = (yx_level0[order] / downsample + side / 2)[:, ::-1] - 0.5
    _outline(left, middles, side, colours, inch)
    _number(left, middles[:numbered], side, colours, inch)
    scale_bar(left, (h, w), mpp_level0 * downsample, share=0.25)
    left.set_title(f"{len(order)} of {len(attention)} tiles zoomed into", **HEAD)

    shown = percentiles(np.asarray(attention, np.float64))
    painted = score_map(shown, yx_level0, tile_px_level0, downsample, (h, w))
    heat = ScalarMappable(Normalize(0, 100), matplotlib.colormaps[COLOUR_MAP])
    show(right, overlay(overview, painted, heat), outlines)
    right.set_title(f"attention: {100 * attention[order].sum():.0f} % on these", **HEAD)

    place = (1.02, 0, 0.2 / size[0], 1)
    ticks = np.unique(np.linspace(1, max(len(order), 1), 5).astype(int))
    bar = figure.colorbar(scale, cax=left.inset_axes(place), ticks=ticks)
    quiet_bar(bar, "order")
    bar = figure.colorbar(heat, cax=right.inset_axes(place), alpha=ALPHA)
    quiet_bar(bar, "attention percentile")
    if lesions:
        line = Line2D([], [], color="black", lw=1.1, label="lesion")
        figure.legend(
            handles=[line], loc="outside lower left", fontsize=9, frameon=False
        )
    save_png(figure, path)


def top_zooms(
    pixels: np.ndarray,
    shares: np.ndarray,
    path: str | os.PathLike,
    *,
    title: str,
    mpp: int | float,
    total: int,
) -> None:
    """Writes a PNG of the first zooms as they were read, each with its number.

    Args:
        pixels: uint8 [k h w 3], k >= 1.
        shares: of the attention, in the end [k].
        path: of the PNG.
        title: above, e.g. the slide's name.
        mpp: um/px of the pixels.
        total: how many zooms there were: the scale of the frames' colours.
    """
    k, side = len(pixels), pixels.shape[1]
    columns = max(min(k, 4), 2)
    rows = -(-k // columns)
    figure = new_figure(2.0 * columns, 2.25 * rows + 0.45)
    said = f"{title}: first zooms, {distance(side * mpp)} wide, {mpp:g} µm/px"
    figure.suptitle(plain(said), fontsize=11, x=0.01, ha="left", color=DARK)
    every = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    frames = _scale(total).to_rgba(np.arange(1, k + 1))
    for axes in every[k:]:
        axes.remove()
    for i, axes in enumerate(every[:k]):
        show(axes, pixels[i])
        axes.spines[:].set(color=frames[i], linewidth=2.5)
        axes.set_title(f"{i + 1}.  {100 * shares[i]:#.2g} % of the attention", **HEAD)
    scale_bar(every[0], pixels.shape[1:3], mpp, share=0.5)
    save_png(figure, path)


def _scale(total: int) -> ScalarMappable:
    """Colours of the first to the last zoom."""
    return ScalarMappable(Normalize(1, max(total, 2)), matplotlib.colormaps[ORDER_MAP])


def _outline(axes, middles: np.ndarray, side: float, colours, inch: float) -> None:
    """Frames within their cells; small cells are filled. `inch`: of a pixel."""
    points = side * inch * 72
    width = np.clip(points / 10, 1.0, 2.2)
    framed = points > 5 * width
    half = side / 2 - (width / 144 / inch if framed else 0)
    square = half * np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)])
    corners, alike = (middles[:, None] + square)[::-1], colours[::-1]  # first on top
    line = lambda colour, width: {"edgecolors": colour, "linewidths": width}
    looks = [line("white", 1.8 * width), line(alike, width)]
    if not framed:
        looks = [{"facecolors": alike, "linewidths": 0, "alpha": 0.7}]
    for look in looks:
        drawn = PolyCollection(corners, **{"facecolors": "none"} | look)
        axes.add_collection(drawn, autolim=False)


def _number(axes, middles: np.ndarray, side: float, colours, inch: float) -> None:
    """Numbers in their cells; of small cells beside them, at the end of a line.

    One for which there is no room is left out.
    """
    high = DIGIT / inch
    halo = [withStroke(linewidth=2.5, foreground="white")]
    within = side >= 1.8 * high
    (x0, x1), (y1, y0) = axes.get_xlim(), axes.get_ylim()
    low, most = np.array([x0, y0]), np.array([x1, y1])
    around, taken = np.zeros((1, 2)), []
    if not within:
        turns = np.linspace(0, 2 * np.pi, 16, endpoint=False) - np.pi / 4
        radii = side / 2 + high * np.arange(0.8, 8.0, 0.5)
        ring = radii[:, None] * np.exp(1j * turns)
        around = np.stack([ring.real, ring.imag], -1).reshape(-1, 2)
        bar = np.array([0.15 * (x1 - x0) + high, 1.5 * high])  # half of the scale bar's
        taken = [(np.array([x0, y1]) + bar * (1, -1), bar)]
        taken += [(at, np.full(2, side / 2)) for at in middles]
    for i, at in enumerate(middles):
        half = high * np.array([0.4 + 0.4 * len(f"{i + 1}"), 1]) / 2
        free = lambda spot, half=half: (
            (spot - half >= low).all()
            and (spot + half <= most).all()
            and all((abs(spot - a) >= half + b).any() for a, b in taken)
        )
        spot = next(filter(free, at + around), None)
        if spot is None:
            continue
        taken.append((spot, half))
        colour = 0.75 * colours[i][:3]  # dark enough to be read
        if not within:
            line = zip(at, spot, strict=True)
            axes.plot(*line, color=colour, lw=1, path_effects=halo, zorder=3)
            axes.plot(*at, "s", color=colour, ms=2.5, zorder=4)
        how = {"ha": "center", "va": "center", "fontsize": 9, "fontweight": "bold"}
        axes.text(*spot, f"{i + 1}", **how, color=colour, path_effects=halo, zorder=5)
