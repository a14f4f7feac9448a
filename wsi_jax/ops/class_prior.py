"""Class probabilities at the class shares of a cohort, not those of its training."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Float64, Int


def log_prior(labels: Int[np.ndarray, " n"], c: int) -> tuple[float, ...]:
    """Log of each class's share of the slides, less that of an equal share.

    A model trained on classes that weigh alike, or are drawn alike, has learnt the
    logits of a cohort with as many slides of each class. Adding this makes them those
    of the cohort that there is (Saerens et al. 2002, eq. 2.4; of two classes King &
    Zeng 2001, eq. 7; "logit adjustment" of Menon et al. 2021).

    Args:
        labels: class of each training slide, before any is weighed or drawn again.
        c: number of classes.

    Returns:
        One number for each class; 0 for a class without slides.
    """
    count = np.bincount(labels, minlength=c)
    share = count * c / len(labels)
    return tuple(np.log(np.where(count > 0, share, 1)).tolist())


def probabilities(
    logits: Float[np.ndarray, "*b c"], log_prior: Sequence[float] = ()
) -> Float64[np.ndarray, "*b c"]:
    """Softmax of logits, after `log_prior` was added to them; () adds nothing.

    Args:
        logits: of a trained model.
        log_prior: of each class; see the function of that name.
    """
    logits = np.asarray(logits, np.float32)
    if log_prior:
        logits = logits + np.asarray(log_prior, np.float32)
    return np.asarray(jax.nn.softmax(logits), np.float64)
