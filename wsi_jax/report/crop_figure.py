"""The crops that a method read of a slide, and its attention at each magnification."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from wsi_jax.report.figure import COLOURS, TEXT, distance, save_png
from wsi_jax.report.overview_panels import ALPHA, Overview, panel_figure
from wsi_jax.report.tile_sheet import tile_sheet

COLOUR_MAP = "OrRd"


class Crops(NamedTuple):
    """Distinct crops of a slide, the weightiest first."""

    which: np.ndarray  # index of each one's magnification [k]
    yx: np.ndarray  # upper left corners [k 2], in pixels at the magnification's mpp
    weight: np.ndarray  # [k], summing to 1


def distinct(
    which: np.ndarray, yx: np.ndarray, weight: np.ndarray, read: np.ndarray
) -> Crops:
    """Crops of draws [n] that were `read`, each once: weights of its draws add up."""
    places = np.column_stack([which, yx])[read].astype(int)
    once, where = np.unique(places, axis=0, return_inverse=True)
    total = np.bincount(where.reshape(-1), weight[read], minlength=len(once))
    order = np.argsort(-total, kind="stable")
    return Crops(once[order, 0], once[order, 1:], total[order])


def crop_figure(
    overview: Overview,
    maps: np.ndarray,
    crops: Crops,
    path: str | os.PathLike,
    *,
    title: str,
    cell_um: int | float,
    mpps: Sequence[int | float],
    crop_px: int,
    numbered: int = 8,
) -> None:
    """Writes a PNG: crops on the overview, and the attention of each magnification.

    Args:
        overview: the slide.
        maps: attention of each magnification [m y x] on a grid of cells, summing to 1
            over all; a cell that has none at any magnification is not painted.
        crops: outlined, with lines the stronger the more they weigh; the first
            `numbered` show their rank.
        cell_um: side of a cell.
        mpps: um/px of the magnifications [m].
        crop_px: side of a crop, in pixels at its magnification's mpp.

    ValueError: maps and magnifications that disagree in number.
    """
    if len(maps) != len(mpps):
        raise ValueError(
            f"{title}: attention at {len(maps)} magnifications, but mpps are {mpps}"
        )
    panels = panel_figure(
        overview, 1 + len(maps), title, legend=_legend(crops, mpps, crop_px)
    )
    first, *others = panels.axes
    own_mpp, hues = np.asarray(mpps, float)[crops.which], _colours(mpps)
    corners, sides = crops.yx * own_mpp[:, None], crop_px * own_mpp
    colours = [hues[m] for m in crops.which]
    panels.draw_squares(first, corners, sides, colours, numbered, crops.weight)
    first.set_title(f"{len(sides)} crops", fontsize=10, color=TEXT)

    # The root of a cell's share in percent, as a single peak would hide the rest.
    heat = ScalarMappable(
        PowerNorm(0.5, 0, 100 * max(maps.max(), 1e-9)), matplotlib.colormaps[COLOUR_MAP]
    )
    cells = np.argwhere(maps.sum(0) > 0)
    for axes, one, mpp, hue in zip(others, maps, mpps, hues, strict=True):
        percent = 100 * one[tuple(cells.T)]
        panels.show_scores(axes, percent, cells * cell_um, cell_um, heat)
        share = f"{mpp:g} µm/px: {100 * one.sum():.0f} %"
        axes.set_title(share, fontsize=10, color=hue, fontweight="bold")
    label, ticks = "attention of a cell, %", MaxNLocator(5)
    rightmost = max(others, key=lambda axes: axes.get_subplotspec().colspan.start)
    panels.colour_bar(rightmost, heat, label, alpha=ALPHA, ticks=ticks)
    save_png(panels.figure, path)


def top_crops(
    pixels: np.ndarray,
    crops: Crops,
    path: str | os.PathLike,
    *,
    title: str,
    mpps: Sequence[int | float],
) -> None:
    """Writes a PNG of the weightiest crops: rank, weight, um/px, side of the field.

    `pixels`, uint8 [k h w 3], are of the first k crops, `mpps` of the magnifications.
    """
    colours = _colours(mpps)
    which = crops.which[: len(pixels)]
    labels = [
        f"{rank}.  {100 * weight:.1f} %\n{mpps[m]:g} µm/px, "
        f"{distance(pixels.shape[1] * mpps[m])} wide"
        for rank, (m, weight) in enumerate(zip(which, crops.weight, strict=False), 1)
    ]
    frames = [colours[m] for m in which]
    figure = tile_sheet(pixels, labels, f"{title}: weightiest crops", frames)
    save_png(figure, path)


def _legend(crops: Crops, mpps: Sequence, crop_px: int) -> list[Line2D]:
    """Colour, number and size of the crops of each magnification."""
    lines = []
    for m, (mpp, colour) in enumerate(zip(mpps, _colours(mpps), strict=True)):
        n, wide = np.sum(crops.which == m), distance(crop_px * mpp)
        label = f"{n} at {mpp:g} µm/px, {wide} wide"
        lines.append(Line2D([], [], color=colour, lw=2.5, label=label))
    return lines


def _colours(mpps: Sequence) -> list[str]:
    """One of each magnification."""
    return [COLOURS[m % len(COLOURS)] for m in range(len(mpps))]
