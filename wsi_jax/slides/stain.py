"""Measures the colour of a slide's stain, and compares it to a model's training."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

# Shares of red, green and blue in the optical density of H&E, from haematoxylin alone
# (.40, .43, .18) to eosin alone (.06, .85, .09; Ruifrok and Johnston, 2001), with the
# margin that laboratories and scanners need. DAB has (.17, .35, .48): a slide with less
# green than haematoxylin has another stain.
HE_LOW = (0.04, 0.42, 0.04)
HE_HIGH = (0.47, 0.87, 0.36)
# By how much a slide may lie beyond all that a model of another stain has learnt from.
MARGIN = 0.03
# Less density than this is glass, whose colour is noise.
FAINT = 0.15
COLOURS = ("red", "green", "blue")


class Stain(NamedTuple):
    """How a slide is stained: parts of red, green and blue in its optical density.

    Their sum is 1: hue and saturation of the tissue, whatever the density.
    """

    dark: bool  # its background, as in fluorescence
    shares: tuple[float, float, float]


@dataclasses.dataclass(kw_only=True)
class StainRange:
    """The stains of the slides that a model has learnt from.

    Without any slide nothing is known, and no slide is unfamiliar.
    """

    low: tuple[float, ...] = ()  # smallest shares of red, green, blue of bright slides
    high: tuple[float, ...] = ()  # largest shares
    dark: bool = False  # whether slides on a dark background were among them


def measure_stain(
    overview: UInt8[np.ndarray, "h w 3"], tissue: Bool[np.ndarray, "h w"], dark: bool
) -> Stain:
    """Measures the colour of the tissue on an overview, RGB.

    Density is counted from the slide's own glass, where there is some, so that a
    scanner's white balance does not pass for a stain.
    """
    glass = overview[~tissue]
    light = np.full(3, 255.0)
    if not dark and len(glass) >= 0.01 * tissue.size:
        median = np.median(glass, axis=0)
        light = np.where(median.min() >= 200, median, light)
    density = np.log((light + 1) / (overview[tissue] + 1.0)).clip(0)
    density = density[density.sum(-1) > FAINT].sum(0)
    total = density.sum()
    shares = density / total if total > 0 else np.full(3, 1 / 3)
    return Stain(dark, tuple(shares.tolist()))


def stain_range(stains: Iterable[Stain]) -> StainRange:
    """The range of several slides' stains."""
    stains = list(stains)
    dark = any(stain.dark for stain in stains)
    bright = np.array([stain.shares for stain in stains if not stain.dark])
    if not len(bright):
        return StainRange(dark=dark)
    ends = bright.min(0).tolist(), bright.max(0).tolist()
    return StainRange(low=tuple(ends[0]), high=tuple(ends[1]), dark=dark)


def unfamiliar(stain: Stain, learnt: StainRange) -> str:
    """Says how a slide's stain differs from all that a model has learnt from, or "".

    A model of H&E is at home in all of H&E, as laboratories and scanners differ by more
    than most cohorts show. A model of another stain is at home in what it has learnt
    from, and a little beyond. Only the mean colour of the tissue is compared:
    it shows fluorescence, and a chromogen such as DAB on a tenth of the tissue or more,
    but neither a faint one, nor tissue of another organ, nor an artefact.
    """
    if not (learnt.low or learnt.dark):
        return ""
    if stain.dark:
        return "" if learnt.dark else "its background is dark, as in fluorescence"
    if not learnt.low:
        return "its background is bright, and the model has learnt from dark ones"
    low, high = np.array(learnt.low), np.array(learnt.high)
    if _within((low + high) / 2, HE_LOW, HE_HIGH):
        low, high = np.minimum(low, HE_LOW), np.maximum(high, HE_HIGH)
    else:
        low, high = low - MARGIN, high + MARGIN
    if _within(stain.shares, low, high):
        return ""
    shares = ", ".join(
        f"{name} {share:.2f} (learnt {least:.2f} to {most:.2f})"
        for name, share, least, most in zip(
            COLOURS, stain.shares, learnt.low, learnt.high, strict=True
        )
    )
    return f"its tissue absorbs other colours: {shares}"


def stain_columns(stain: Stain | None) -> dict[str, float | str]:
    """The shares as columns of slides.csv; empty where no tissue could be read."""
    shares = ["", "", ""] if stain is None else [round(s, 4) for s in stain.shares]
    return {f"stain_{name}": s for name, s in zip(COLOURS, shares, strict=True)}


def _within(shares, low, high) -> bool:
    return bool(np.all((np.array(low) <= shares) & (shares <= np.array(high))))
