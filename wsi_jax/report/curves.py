"""A report's curves: ROC, calibration, training, confusion. Arrays in, figures out.

Numbers are computed in `evals`; here they are drawn. `figure.svg` puts the result into
a page and `figure.save_png` into a file.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wsi_jax.report.figure import BLUE, COLOURS, INK, new_figure, plain, quiet

Line = tuple[np.ndarray, np.ndarray]  # steps and values


@dataclasses.dataclass(kw_only=True)
class Roc:
    """One ROC curve [g] with its area, and intervals of both."""

    name: str  # the class that counts as positive
    fpr: np.ndarray
    tpr: np.ndarray
    auc: float
    lo: float
    hi: float
    grid: np.ndarray | None = None  # false positive rates of the band
    tpr_lo: np.ndarray | None = None
    tpr_hi: np.ndarray | None = None


def roc(
    curves: Sequence[Roc], operating_point: tuple[float, float] | None = None
) -> Figure:
    """ROC curves with their bands and areas, and the threshold's (fpr, tpr).

    One curve for two classes, one of each class against the rest for more.
    """
    figure, axes = _unit_square()
    for k, curve in enumerate(curves):
        colour = COLOURS[k % len(COLOURS)]
        if curve.grid is not None:
            axes.fill_between(
                curve.grid, curve.tpr_lo, curve.tpr_hi, color=colour, alpha=0.18, lw=0
            )
        text = f"{curve.name}: {curve.auc:.3f}"
        if not np.isnan([curve.lo, curve.hi]).any():
            text += f" ({curve.lo:.3f} to {curve.hi:.3f})"
        axes.plot(curve.fpr, curve.tpr, color=colour, linewidth=1.8, label=plain(text))
    if operating_point is not None:
        axes.plot(*operating_point, "o", color=INK, markersize=5, label="threshold")
    axes.set(
        xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1), ylim=(0, 1.01)
    )
    quiet(axes)
    _legend(axes, "lower right", "AUC (95 % interval)")
    return figure


def calibration(
    claimed: np.ndarray, came_true: np.ndarray, count: np.ndarray, xlabel: str
) -> Figure:
    """How often a claimed probability came true; area of a dot: slides in the bin.

    Takes means, shares and counts of the bins [m] of `evals.metrics.calibration`.
    """
    figure, axes = _unit_square()
    axes.plot(claimed, came_true, color=BLUE, linewidth=1.2, alpha=0.6)
    size = 18 + 260 * np.asarray(count) / np.sum(count)
    axes.scatter(claimed, came_true, s=size, color=BLUE, zorder=3)
    for x, y, n, area in zip(claimed, came_true, count, size, strict=True):
        below = y > 0.85
        axes.annotate(
            f"{n}",
            (x, y),
            (0, (-1 if below else 1) * (4 + np.sqrt(area) / 2)),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            fontsize=8,
            color=INK,
        )
    axes.set(
        xlabel=plain(xlabel),
        ylabel="share that came true",
        xlim=(0, 1.02),
        ylim=(-0.02, 1.02),
    )
    quiet(axes)
    return figure


def training(losses: Mapping[str, Line], scores: Mapping[str, Line]) -> Figure:
    """Losses by name, and beside them scores between 0 and 1, by training step."""
    panels = [("loss", losses)] + ([("score", scores)] if scores else [])
    figure = new_figure(5.6 * len(panels), 3.2)
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (ylabel, lines) in zip(every, panels, strict=True):
        _against_steps(axes, lines, ylabel)
        if ylabel == "score":
            axes.set_ylim(min(0.45, axes.get_ylim()[0]), 1.01)
        _legend(axes, "best")
    return figure


def magnifications(mass: Mapping[str, Line]) -> Figure:
    """Each magnification's share of the attention against the training step.

    `mass` is um/px, the finest first -> steps, and shares between 0 and 1.
    """
    figure = new_figure(5.6, 3.2)
    axes = figure.subplots()
    lines = {f"{mpp} µm/px": line for mpp, line in mass.items()}
    _against_steps(axes, lines, "share of attention")
    axes.axhline(1 / len(mass), color=INK, lw=0.8, ls=":", label="equal shares")
    axes.set_ylim(0, 1)
    _legend(axes, "best")
    return figure


def zooming(
    shares: np.ndarray,
    truth: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    auc: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Figure:
    """Predictions against the share of tiles zoomed into.

    `shares` [g] lie between 0 and 1. Class -> probability of it on slides that are of
    it, and its AUC: the value and both ends of a band, each [g].
    """
    panels = (("probability of the true class", truth), ("AUC", auc))
    figure = new_figure(11.2, 3.2)
    classes = list(truth | auc)  # a class looks alike in both panels
    for axes, (ylabel, lines) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.axhline(0.5, color=INK, lw=0.8, ls=":", alpha=0.6)
        for name, (value, lo, hi) in lines.items():
            k = classes.index(name)
            colour, style = COLOURS[k % len(COLOURS)], ("-", "--")[k % 2]
            axes.fill_between(100 * shares, lo, hi, color=colour, alpha=0.18, lw=0)
            axes.plot(
                100 * shares, value, style, color=colour, lw=1.8, label=plain(name)
            )
        axes.set(xlabel="tiles zoomed into, %", ylabel=ylabel, ylim=(-0.01, 1.01))
        axes.set_xlim(0, 100 * shares[-1])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        quiet(axes)
        _legend(axes, "best")
    return figure


def confusion(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts [c c], row label, column prediction; shade: share of the row."""
    c = len(classes)
    side = max(3.2, 0.85 * c + 1.4)
    figure = new_figure(side + 0.4, side)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    for i in range(c):
        for j in range(c):
            shade = to_rgba(BLUE, 0.04 + 0.5 * share[i, j])
            axes.fill_between(
                [j - 0.48, j + 0.48], i - 0.48, i + 0.48, color=shade, lw=0
            )
            text = f"{matrix[i, j]:g}\n{100 * share[i, j]:.0f} %"
            axes.text(j, i, text, ha="center", va="center", fontsize=10, color=INK)
    axes.set(xlabel="prediction", ylabel="label", xlim=(-0.5, c - 0.5))
    axes.set_ylim(c - 0.5, -0.5)
    names = [plain(name) for name in classes]
    axes.set_xticks(range(c), names)
    axes.set_yticks(range(c), names, rotation=90 if c <= 3 else 0, va="center")
    axes.set_aspect("equal")
    quiet(axes)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _unit_square() -> tuple[Figure, Axes]:
    """A square figure whose diagonal is drawn."""
    figure = new_figure(3.75, 3.6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", alpha=0.6)
    axes.set_aspect("equal")
    return figure, axes


def _against_steps(axes: Axes, lines: Mapping[str, Line], ylabel: str) -> None:
    """Lines by name, with a dot for each value where there are few."""
    for k, (name, (steps, values)) in enumerate(lines.items()):
        few = "o" if len(steps) <= 30 else None
        colour, label = COLOURS[k % len(COLOURS)], plain(name)
        axes.plot(steps, values, color=colour, lw=1.6, label=label, marker=few, ms=3.5)
    axes.set(xlabel="step", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    quiet(axes)


def _legend(axes: Axes, place: str, title: str | None = None) -> None:
    style = {"fontsize": 9, "title_fontsize": 9, "frameon": False}
    axes.legend(loc=place, title=title, labelcolor=INK, **style).get_title().set_color(
        INK
    )
