"""Predictions while slides are zoomed into, at common shares of their tiles."""

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax


def zoom_curve(
    logits: Sequence[np.ndarray],
    steps: Sequence[int] | np.ndarray,
    tiles: Sequence[int] | np.ndarray,
    points: int = 21,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities by the share of a slide's tiles that have been zoomed into.

    Slides differ in tiles, and so in steps: each is read at the same fractions of its
    own steps, linearly between two of them, so that all end at their prediction. (Whole
    steps are never quite the same share of two slides: the shares are the mean's.)

    Takes logits of each slide, before the first step and after each [t+1 c], and
    numbers of its steps and tiles [n]; what lies behind the last step has no effect.
    Gives shares [g] from 0 on, and probabilities [n g c]. ValueError: fewer logits than
    steps.
    """
    fractions, curves = np.linspace(0, 1, points), []
    for i, (own, last) in enumerate(zip(logits, steps, strict=True)):
        if len(own) < last + 1:
            raise ValueError(f"slide {i}: {last} steps, but {len(own)} logits")
        at, whole = fractions * last, np.arange(last + 1)
        p = softmax(np.asarray(own[: last + 1], np.float64), -1)
        curves.append(np.stack([np.interp(at, whole, each) for each in p.T], -1))
    share = np.mean(np.asarray(steps) / np.asarray(tiles))
    return fractions * share, np.stack(curves)
