"""What verdicts were like while slides were zoomed into."""

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax


def along(
    logits: Sequence[np.ndarray],
    steps: Sequence[int] | np.ndarray,
    tiles: Sequence[int] | np.ndarray,
    points: int = 21,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities by the share of a slide's tiles that have been zoomed into.

    Slides differ in tiles, and so in steps: each is read off at the same fractions of
    its own way, on a straight line between two steps, so that all end at their verdict.
    (Whole steps are never quite the same share of two slides: the mean is told.)

    Args:
        logits: of each slide [n], before the first step and after each [t+1 c]; what
            lies behind its last step has no effect.
        steps: of each slide [n].
        tiles: of each slide [n].
        points: shares to read off.

    Returns:
        Shares [g] from 0 on, and probabilities [n g c].

    Raises:
        ValueError: a slide with fewer logits than steps.
    """
    way, found = np.linspace(0, 1, points), []
    for i, (one, last) in enumerate(zip(logits, steps, strict=True)):
        if len(one) < last + 1:
            raise ValueError(f"slide {i}: {last} steps, but {len(one)} logits")
        p = softmax(np.asarray(one[: last + 1], np.float64), -1)
        read = lambda each, last=last: np.interp(way * last, np.arange(last + 1), each)
        found.append(np.stack([read(each) for each in p.T], -1))
    share = np.mean(np.asarray(steps) / np.asarray(tiles))
    return way * share, np.stack(found)
