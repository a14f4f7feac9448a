"""Do probabilities mean what they say?"""

import numpy as np

from wsi_jax.evals.ranking import divide, weigh


def confidence(
    labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What was claimed [n] and whether it came true [n], for calibration.

    Two classes: the positive's probability, and whether the slide is positive. More:
    the largest probability, and whether that class is the label (Guo et al., 2017).
    """
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], labels == 1
    return probabilities.max(-1), probabilities.argmax(-1) == labels


def calibration(
    claimed: np.ndarray, came_true: np.ndarray, bins: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean claim, share that came true, and count, of each bin that is not empty."""
    index = np.minimum((claimed * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    full = count > 0
    mean = [np.bincount(index, v, bins)[full] for v in (claimed, came_true)]
    return mean[0] / count[full], mean[1] / count[full], count[full]


def calibration_error(
    labels: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray | None = None,
    bins: int = 10,
) -> np.ndarray | float:
    """Expected calibration error: |claimed - came true|, over bins of equal width."""
    claimed, came_true = confidence(labels, probabilities)
    index = np.minimum((claimed * bins).astype(int), bins - 1)
    weights = weigh(weights, len(labels))
    gap = np.abs((weights * (claimed - came_true)) @ np.eye(bins)[index]).sum(-1)
    return divide(gap, weights.sum(-1))
