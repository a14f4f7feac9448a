"""What a method chose to look at: its crops on the overview, and its attention."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import PowerNorm, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from wsi_jax.report.figure import (
    COLOURS,
    distance,
    new_figure,
    plain,
    save_png,
    scale_bar,
)
from wsi_jax.report.heatmap import ALPHA, overlay, quiet_bar, score_map, show
from wsi_jax.report.tiles import strip

COLOUR_MAP = "OrRd"
WIDTH, HEIGHT = 8.0, 6.4  # inches that the panels of a figure may take
LEAST = 1.4  # inches that a panel's title takes


class Crops(NamedTuple):
    """Distinct crops of a slide, the weightiest first.

    Attributes:
        which: magnification of each [k].
        yx: its corner [k 2], in pixels at the magnification's mpp.
        weight: [k], summing to 1.
    """

    which: np.ndarray
    yx: np.ndarray
    weight: np.ndarray


def distinct(
    which: np.ndarray, yx: np.ndarray, weight: np.ndarray, read: np.ndarray
) -> Crops:
    """Crops that were read, each once: of several draws the weights add up.

    Args:
        which: magnification of each draw [n].
        yx: corner of its crop [n 2].
        weight: [n].
        read: [n]; False where there is no crop.
    """
    places = np.column_stack([which, yx])[read].astype(int)
    once, where = np.unique(places, axis=0, return_inverse=True)
    total = np.bincount(where.reshape(-1), weight[read], minlength=len(once))
    order = np.argsort(-total, kind="stable")
    return Crops(once[order, 0], once[order, 1:], total[order])


def looks(
    overview: np.ndarray,
    maps: np.ndarray,
    crops: Crops,
    path: str | os.PathLike,
    *,
    title: str,
    mpp: int | float,
    cell_um: int | float,
    mpps: Sequence[int | float],
    crop_px: int,
    numbered: int = 8,
    lesions: Sequence[np.ndarray] = (),
) -> None:
    """Writes a PNG: crops on the overview, and the attention of each magnification.

    Args:
        overview: uint8 [h w 3].
        maps: attention of each magnification [m y x] on a grid of cells, summing to 1
            over all; a cell that has none at any magnification is not painted.
        crops: outlined, the more they weigh the stronger.
        path: of the PNG.
        title: above the panels, e.g. the slide's name.
        mpp: um/px of the overview.
        cell_um: side of a cell.
        mpps: um/px of the magnifications [m].
        crop_px: side of a crop, in pixels at its magnification's mpp.
        numbered: how many crops, the weightiest, show their rank.
        lesions: outlines, each [m 2], (y, x) in um.

    Raises:
        ValueError: maps and magnifications that disagree in number.
    """
    if len(maps) != len(mpps):
        raise ValueError(
            f"{title}: attention at {len(maps)} magnifications, but mpps are {mpps}"
        )
    h, w = overview.shape[:2]
    rows, columns, size = panels(1 + len(maps), (h, w))
    handles = _legend(crops, mpps, crop_px, bool(lesions))
    width = max(columns * (max(size[0], LEAST) + 0.1) + 0.9, 5.0)
    abreast = int(width / 2.5)
    lines = -(-len(handles) // abreast)
    figure = new_figure(width, rows * (size[1] + 0.3) + 0.35 + 0.22 * lines)
    if size[0] >= LEAST:  # else the panels stand apart, for their titles' sake
        figure.set_layout_engine("compressed")
    figure.suptitle(plain(title), fontsize=12, x=0.01, ha="left", color="#222222")
    every = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    left, *others = every[: 1 + len(maps)]
    for axes in every[1 + len(maps) :]:
        axes.remove()

    outlines = [np.asarray(lesion) / mpp for lesion in lesions]
    show(left, overview, outlines)
    left.set_title(f"{len(crops.weight)} crops", fontsize=10, color="#222222")
    inch, hues = size[0] / w, _colours(mpps)
    corners = _corners(crops, np.asarray(mpps) / mpp, crop_px)
    _outline(left, corners, crops, hues, inch)
    first = crops.which[:numbered]
    _number(left, corners[: len(first)], [hues[m] for m in first], inch)
    scale_bar(left, (h, w), mpp, share=0.25)

    # Of a cell alone, in percent; the root, lest a single peak hide all the rest.
    colours = ScalarMappable(
        PowerNorm(0.5, 0, 100 * max(maps.max(), 1e-9)), matplotlib.colormaps[COLOUR_MAP]
    )
    cells = np.argwhere(maps.sum(0) > 0)
    for axes, one, scale, colour in zip(others, maps, mpps, hues, strict=True):
        percent = 100 * one[tuple(cells.T)]
        painted = score_map(percent, cells * cell_um, cell_um, mpp, (h, w))
        show(axes, overlay(overview, painted, colours), outlines)
        said = f"{scale:g} µm/px: {100 * one.sum():.0f} %"
        axes.set_title(said, fontsize=10, color=colour, fontweight="bold")
    across, along = 0.2, rows * size[1]  # inches
    bar = figure.colorbar(
        colours,
        ax=[left, *others],
        alpha=ALPHA,
        fraction=across / width,
        aspect=along / across,
        pad=0.02,
        ticks=MaxNLocator(5),
    )
    quiet_bar(bar, "attention of a cell, %")
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=abreast,
        fontsize=9,
        frameon=False,
        labelcolor="#222222",
    )
    save_png(figure, path)


def top_crops(
    pixels: np.ndarray,
    crops: Crops,
    path: str | os.PathLike,
    *,
    title: str,
    mpps: Sequence[int | float],
) -> None:
    """Writes a PNG strip of the weightiest crops: rank, weight, um/px, side of field.

    Args:
        pixels: uint8 [k h w 3], of the first k crops.
        crops: k or more.
        path: of the PNG.
        title: above the strip.
        mpps: um/px of the magnifications.
    """
    colours = _colours(mpps)
    which = crops.which[: len(pixels)]
    labels = [
        f"{rank}.  {100 * weight:.1f} %\n{mpps[m]:g} µm/px\n"
        f"{distance(pixels.shape[1] * mpps[m])} wide"
        for rank, (m, weight) in enumerate(zip(which, crops.weight, strict=False), 1)
    ]
    frames = [colours[m] for m in which]
    save_png(strip(pixels, labels, f"{title}: weightiest crops", frames), path)


def panels(n: int, shape: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """(rows, columns, (width, height) of each in inches) of n panels of an image.

    Those that fill the figure best; an empty place counts against them.
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


def _corners(crops: Crops, zoom: np.ndarray, crop_px: int) -> np.ndarray:
    """Corners of crops [k 4 2], (x, y) on the overview; `zoom` is per magnification."""
    square = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])
    corners = (crops.yx[:, None] + crop_px * square) * zoom[crops.which][:, None, None]
    # Pixel i of an image lies from i - 1/2 to i + 1/2.
    return corners[..., ::-1] - 0.5


def _outline(axes, corners: np.ndarray, crops: Crops, colours, inch: float) -> None:
    """Frames of crops; `inch`: of an overview pixel."""
    side = corners[:, 2, 0] - corners[:, 0, 0]
    strength = crops.weight / max(crops.weight.max(initial=0), 1e-9)
    width = np.minimum(0.7 + 1.9 * strength, np.maximum(side * inch * 72 / 4, 0.7))
    alpha = 0.4 + 0.6 * strength
    frames, edges, widths = [], [], []
    # The wide ones first, and of these the light ones: neither hides the other.
    for k in np.lexsort([crops.weight, -side]):
        frames += [corners[k]] * 2
        edges += [to_rgba(c, alpha[k]) for c in ("white", colours[crops.which[k]])]
        widths += [width[k] + 1.4, width[k]]
    drawn = PolyCollection(
        frames, facecolors="none", edgecolors=edges, linewidths=widths
    )
    axes.add_collection(drawn, autolim=False)


def _number(axes, corners: np.ndarray, colours: Sequence[str], inch: float) -> None:
    """The rank of each crop, outside the first of its corners where there is room."""
    gap = 0.13 / inch  # what a digit takes
    (x0, x1), (y1, y0) = axes.get_xlim(), axes.get_ylim()
    taken = np.zeros((0, 2))
    for rank, (four, colour) in enumerate(zip(corners, colours, strict=True), 1):
        away = np.sign(four - four.mean(0))
        spots = np.clip(
            four + away * gap / 2, (x0 + gap, y0 + gap), (x1 - gap, y1 - gap)
        )
        apart = np.linalg.norm(spots[:, None] - taken, axis=-1).min(1, initial=np.inf)
        at = spots[np.argmax(np.minimum(apart, 1.2 * gap))]
        taken = np.vstack([taken, at])
        axes.text(
            *at,
            f"{rank}",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _legend(crops: Crops, mpps, crop_px: int, lesions: bool) -> list[Line2D]:
    """What the outlines are, and how many crops of each magnification."""
    count = np.bincount(crops.which, minlength=len(mpps))
    lines = [
        Line2D(
            [],
            [],
            color=colour,
            lw=2.5,
            label=f"{n} at {mpp:g} µm/px, {distance(crop_px * mpp)} wide",
        )
        for mpp, n, colour in zip(mpps, count, _colours(mpps), strict=True)
    ]
    if lesions:
        lines.append(Line2D([], [], color="black", lw=1.1, label="lesion"))
    return lines


def _colours(mpps: Sequence) -> list[str]:
    """One of each magnification."""
    return [COLOURS[m % len(COLOURS)] for m in range(len(mpps))]
