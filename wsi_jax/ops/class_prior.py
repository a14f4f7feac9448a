"""Correction of class probabilities from balanced training to a cohort's prior."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Float64, Int


def log_prior(labels: Int[np.ndarray, " n"], c: int) -> tuple[float, ...]:
    """Log prior of each class, relative to equal shares.

    Added to the logits of a model that was trained with balanced classes it gives those
    of the cohort (Saerens et al. 2002, eq. 2.4; "logit adjustment" of Menon et al.
    2021).

    Args:
        labels: class of each training slide, before balancing.

    Returns:
        One number for each class; 0 for a class without slides.
    """
    count = np.bincount(labels, minlength=c)
    share = count * c / len(labels)
    return tuple(np.log(np.where(count > 0, share, 1)).tolist())


def probabilities(
    logits: Float[np.ndarray, "*b c"], log_prior: Sequence[float] = ()
) -> Float64[np.ndarray, "*b c"]:
    """Softmax of logits plus `log_prior`.

    Args:
        log_prior: log prior of each class, by `log_prior`; () adds nothing.
    """
    logits = np.asarray(logits, np.float32)
    if log_prior:
        logits = logits + np.asarray(log_prior, np.float32)
    return np.asarray(jax.nn.softmax(logits), np.float64)
