"""Slides of a batch are shared out evenly among devices."""

import itertools
import math

import numpy as np
import pytest

from wsi_jax.training.packing import like_sizes, spread_by_size


def fullest(sizes, packed):
    return max(sum(sizes[i] for i in indices) for indices in packed)


def drawn(seed):
    """Sizes as those of slides, whole numbers so that sums are exact; often equal."""
    rng = np.random.default_rng(seed)
    count, bins = int(rng.integers(0, 40)), int(rng.integers(1, 12))
    sizes = np.ceil(rng.lognormal(3, rng.choice([0, 0.5, 1.5]), count))
    return [int(size) for size in sizes], bins


@pytest.mark.parametrize("seed", range(100))
def test_every_slide_is_there_once_and_no_bin_is_far_above_the_mean(seed):
    sizes, bins = drawn(seed)
    packed = spread_by_size(sizes, bins)
    assert len(packed) == bins
    assert sorted(itertools.chain(*packed)) == list(range(len(sizes)))
    assert all(indices == sorted(indices) for indices in packed)
    if not sizes:
        return
    # The last thing put into a bin, its smallest, found all bins at least as full.
    for indices in packed:
        mean, last = sum(sizes) / bins, min((sizes[i] for i in indices), default=0)
        assert sum(sizes[i] for i in indices) <= mean + last * (1 - 1 / bins) + 1e-9


@pytest.mark.parametrize("seed", range(30))
def test_the_bound_holds_against_the_optimum(seed):
    rng = np.random.default_rng(seed)
    bins = int(rng.integers(1, 4))
    sizes = rng.integers(1, 30, int(rng.integers(1, 8))).tolist()
    best = min(
        max(np.bincount(way, sizes))
        for way in itertools.product(range(bins), repeat=len(sizes))
    )
    bound = (4 / 3 - 1 / (3 * bins)) * best
    assert best <= fullest(sizes, spread_by_size(sizes, bins)) <= bound + 1e-9


def test_ties_go_to_the_first():
    assert spread_by_size([5, 5, 5], 3) == [[0], [1], [2]]
    assert spread_by_size([1, 5, 1, 5], 2) == [[0, 1], [2, 3]]
    assert spread_by_size(np.float32([0, 0, 0]), 2) == [[0, 1, 2], []]


def test_bins_without_slides_are_empty():
    assert spread_by_size([3, 7], 4) == [[1], [0], [], []]
    assert spread_by_size([], 2) == [[], []]


@pytest.mark.parametrize(("sizes", "bins"), [
    ([1], 0), ([1, -1], 2), ([math.nan], 1), ([math.inf], 1)
])  # fmt: skip
def test_what_is_no_size_is_refused(sizes, bins):
    with pytest.raises(ValueError, match=r"bins=|sizes\["):
        spread_by_size(sizes, bins)


@pytest.mark.parametrize("seed", range(20))
def test_batches_of_like_sizes_hold_every_slide_once_and_do_not_overlap(seed):
    sizes, batch = drawn(seed)
    batches = like_sizes(sizes, batch)
    assert sorted(itertools.chain(*batches)) == list(range(len(sizes)))
    assert all(len(indices) == batch for indices in batches[:-1])
    for before, after in itertools.pairwise(batches):
        assert max(sizes[i] for i in before) <= min(sizes[i] for i in after)


def test_of_equal_sizes_the_first_comes_first():
    assert like_sizes([2, 1, 2, 1, 1], 2) == [[1, 3], [4, 0], [2]]
