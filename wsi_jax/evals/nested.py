"""Nested cross-validation: every choice is made without the slides that judge it."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from wsi_jax.evals.ranking import auc


class Nested(NamedTuple):
    """What nested cross-validation found.

    Attributes:
        scores: of each slide [n], when its group was left out; ranks within that group.
        chosen: which learner each outer group was given.
    """

    scores: np.ndarray
    chosen: dict[str, str]


def nested(
    learners: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    label: np.ndarray,
    outer: Sequence[str] | np.ndarray,
    inner: Sequence[str] | np.ndarray,
) -> Nested:
    """Leaves each outer group out once, and chooses by leaving inner groups out.

    Scores of different folds come from different models: only their ranks within the
    fold are comparable, so ranks are what is pooled (from 0 to 1, ties in the middle).

    Args:
        learners: by name: (train [f n] bool) -> scores [f n] of all slides, row by row
            learnt from the slides of `train` alone. Always called with the same f.
        label: 0 or 1 of each slide [n].
        outer: group of each slide that tests together.
        inner: group of each slide that is left out together to choose a learner by AUC.

    Raises:
        ValueError: an inner group lies in two outer ones, and would choose and test.
    """
    outer, inner = np.asarray(outer), np.asarray(inner)
    small = np.unique(inner)
    for group in small:
        above = sorted(set(outer[inner == group].tolist()))
        if len(above) > 1:
            raise ValueError(f"inner group {str(group)!r} lies in outer groups {above}")
    scores, chosen = np.full(len(label), np.nan), {}
    for group in np.unique(outer):
        test = outer == group
        held = [s for s in small if not test[inner == s].any()]
        # As many rows in every outer fold, so that a learner is compiled once.
        train = np.stack([~test & (inner != s) for s in [*held, *[""] * len(small)]])
        train = train[: len(small) + 1]
        found = {name: learn(train) for name, learn in learners.items()}
        value = {}
        for name, said in found.items():
            inside = np.full(len(label), np.nan)
            for row, s in zip(said, held, strict=False):
                inside[inner == s] = rank(row[inner == s])
            value[name] = auc(label[~test] == 1, inside[~test])
        best = max(value, key=value.get)
        chosen[str(group)] = best
        # Behind the inner folds stands the one that leaves out the outer group alone.
        scores[test] = rank(found[best][len(held)][test])
    return Nested(scores, chosen)


def rank(scores: np.ndarray) -> np.ndarray:
    """Ranks between 0 and 1, ties in the middle."""
    return (stats.rankdata(scores) - 0.5) / len(scores)
