"""Nested cross-validation: every choice is made without the slides that test it."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wsi_jax.evals.metrics import auc


class Nested(NamedTuple):
    """Scores of slides, and the learner chosen for each outer group.

    A slide's score [n] is that of a model without its outer group; only scores within a
    group are comparable.
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

    Models have no common scale: a learner is chosen by the AUC of pairs within inner
    groups, and AUCs of the result are of pairs within outer groups
    (`evals.intervals.delong(..., groups=outer)`). A group of one class has no pair.

    Args:
        learners: by name: (train [f n] bool) -> scores [f n] of all slides, row by row
            learnt from the slides of `train` alone. Always called with the same f.
        label: 0 or 1 of each slide [n].
        outer: group of each slide that tests together.
        inner: group of each slide that is left out together to choose a learner by AUC.

    Raises:
        ValueError: an inner group lies in two outer ones; or no inner group outside an
            outer one has both classes, so that nothing can be chosen.
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
        learnt = {name: learn(train) for name, learn in learners.items()}
        areas = {}
        for name, rows in learnt.items():
            inside = np.full(len(label), np.nan)
            for row, s in zip(rows, held, strict=False):
                inside[inner == s] = row[inner == s]
            areas[name] = auc(label[~test] == 1, inside[~test], groups=inner[~test])
        if np.isnan(list(areas.values())).any():
            raise ValueError(
                f"outside {str(group)!r} no inner group has slides of both classes: "
                "larger inner groups are needed to choose a learner"
            )
        best = max(areas, key=areas.get)
        chosen[str(group)] = best
        # Behind the inner folds stands the one that leaves out the outer group alone.
        scores[test] = learnt[best][len(held)][test]
    return Nested(scores, chosen)
