"""The threshold of two classes, chosen on validation slides."""

import numpy as np

from wsi_jax.evals.metrics import roc_points


def choose_threshold(labels: np.ndarray, p: np.ndarray) -> float:
    """The threshold of best balanced accuracy, which is Youden's J.

    Balanced accuracy is constant between two neighbouring probabilities: the middle of
    the best plateau is taken, of the widest when several are best, so that predictions
    do not hang on one slide's third decimal. A slide is positive where `p >= t`.

    ValueError: one of the classes has no slide.
    """
    labels, p = np.asarray(labels), np.asarray(p, np.float64)
    for k in (0, 1):
        if not (labels == k).any():
            raise ValueError(
                f"no slide of class {k} among the {len(labels)} validation slides: "
                "a threshold cannot be chosen; mend the split"
            )
    if not np.isfinite(p).all():
        raise ValueError(f"{(~np.isfinite(p)).sum()} probabilities are not finite")
    right, up = roc_points(labels == 1, p)
    # roc_points falls from "nothing is positive"; plateau k is (lower[k], upper[k]].
    falling = -np.unique(-p)
    upper, lower = np.r_[1.0, falling], np.r_[falling, 0.0]
    best = np.isclose(up - right, (up - right).max(), rtol=0, atol=1e-12)
    edges = np.flatnonzero(np.diff(np.r_[False, best, False]))
    first, last = edges[::2], edges[1::2] - 1
    widest = np.argmax(upper[first] - lower[last])
    low, high = lower[last[widest]], upper[first[widest]]
    middle = (low + high) / 2
    return float(middle if middle > low else high)
