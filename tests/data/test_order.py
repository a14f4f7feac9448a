from collections import Counter

import numpy as np
import pytest

from wsi_jax.data import order
from wsi_jax.data.order import permutation, process_rows, slides_of_batch

LABELS = np.array([0] * 7 + [1] * 2 + [2] * 3, np.int32)


def test_a_permutation_is_one_and_never_changes():
    np.testing.assert_array_equal(np.sort(permutation(100, 3)), np.arange(100))
    # A run resumed next year, under another NumPy, must go on with the same slides.
    assert permutation(8, 0, 1).tolist() == [7, 4, 5, 1, 6, 2, 0, 3]


@pytest.mark.parametrize("seed", [None, 5])
def test_a_pass_has_each_tile_once_and_its_last_batch_is_filled(seed):
    draw = lambda steps: [
        order.tile_order(10, 3, step, seed).tolist() for step in steps
    ]
    for epoch in (0, 1):
        tiles = np.concatenate(draw(range(epoch * 4, epoch * 4 + 4))).tolist()
        assert sorted(tiles[:10]) == list(range(10))
        assert tiles[10:] == [-1, -1]
        assert seed is not None or tiles[:10] == list(range(10))
    assert (draw(range(4, 8)) == draw(range(4))) == (seed is None)


def test_every_slide_once_before_any_comes_again():
    """Balanced, classes take turns and each goes through its own slides so."""
    draw = lambda balanced, steps: np.concatenate(
        [slides_of_batch(0, step, LABELS, 5, balanced) for step in range(steps)]
    )
    epochs = draw(False, 24).reshape(10, 12)
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10
    drawn = draw(True, 21)
    assert Counter(LABELS[drawn].tolist()) == {0: 35, 1: 35, 2: 35}
    assert {Counter(drawn.tolist())[i] for i in range(7)} == {5}


def test_a_batch_depends_on_seed_and_step_alone():
    for balanced in (False, True):
        draw = lambda seed, steps, b=balanced: [
            slides_of_batch(seed, step, LABELS, 4, b).tolist() for step in steps
        ]
        forwards = draw(1, range(9))
        assert forwards == draw(1, reversed(range(9)))[::-1]
        assert forwards != draw(2, range(9))


def test_tiles_drawn_differ_by_step_and_by_slide():
    drawn = {
        tuple(order.draw_tiles(0, step, slide, 50, 8))
        for step, slide in np.ndindex(3, 3)
    }
    assert len(drawn) == 9
    assert all(sorted(set(tiles)) == list(tiles) and len(tiles) == 8 for tiles in drawn)


def test_processes_share_a_batch():
    rows = np.arange(12)
    parts = [rows[process_rows(12, p, 3)] for p in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), rows)
    with pytest.raises(ValueError, match="batch of 12 does not divide among 5"):
        process_rows(12, 0, 5)
