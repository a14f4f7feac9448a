"""Slides of a batch, shared out among devices so that none is waited for long; and
slides of like sizes in one batch."""

import heapq
import math
from collections.abc import Iterable
from numbers import Real


def spread_by_size(sizes: Iterable[Real], bins: int) -> list[list[int]]:
    """Shares slides out among devices so that the fullest device has least to do.

    The largest goes first, each to the device that has least. The fullest then has at
    most 4/3 - 1 / (3 bins) times what it must (Graham 1969). Of equal slides, and of
    equal devices, the first comes first, so that every process finds the same.

    Args:
        sizes: work of each slide, such as its tiles; none below zero.
        bins: how many devices.

    Returns:
        Indices into `sizes` of each device, ascending; empty where there are fewer
        slides than devices.

    Raises:
        ValueError: no device, or a size that is no number from zero on.
    """
    sizes = list(sizes)
    if bins < 1:
        raise ValueError(f"bins={bins}: at least one device is needed")
    for i, size in enumerate(sizes):
        if not (size >= 0 and math.isfinite(size)):
            raise ValueError(f"sizes[{i}]={size}: a size is a number from zero on")
    fullness, packed = [(0, i) for i in range(bins)], [[] for _ in range(bins)]
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        filled, place = fullness[0]
        packed[place].append(i)
        heapq.heapreplace(fullness, (filled + sizes[i], place))
    return [sorted(indices) for indices in packed]


def like_sizes(sizes: Iterable[Real], batch: int) -> list[list[int]]:
    """Batches of slides of like sizes, the smallest first; of equal ones the first.

    Where devices have few slides each, or pad all slides to the longest of a batch.

    Args:
        sizes: work of each slide.
        batch: slides in a batch; the last may have fewer.

    Returns:
        Indices into `sizes` of each batch.
    """
    sizes = list(sizes)
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
    return [order[first : first + batch] for first in range(0, len(order), batch)]
