"""How well the attention of a slide finds its tumour tiles."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import average_precision_score


class Localisation(NamedTuple):
    """How well attention finds the tumour of one slide."""

    difference: float  # of means on tumour tiles and on others (Liu, Zuo et al. 2024)
    lift: float  # mean attention of tumour tiles, as a multiple of one that is even
    auprc: float  # average precision of attention as a finder of tumour tiles
    chance: float  # share of tumour tiles


def localisation_metrics(
    attention: Float[np.ndarray, " n"], tumour: Bool[np.ndarray, " n"]
) -> Localisation:
    """Measures the attention of a slide's tiles, which sums to 1, against their labels.

    ValueError: all tiles are tumour, or none is.
    """
    if tumour.all() or not tumour.any():
        which = "every tile" if tumour.any() else "no tile"
        raise ValueError(f"{which} of the slide is tumour: nothing to tell apart")
    mean = float(attention[tumour].mean())
    return Localisation(
        difference=mean - float(attention[~tumour].mean()),
        lift=mean * len(attention),
        auprc=float(average_precision_score(tumour, attention)),
        chance=float(tumour.mean()),
    )
