"""Batches of tiles: each once, none before those that it needs, nearly all full."""

import numpy as np
import pytest

from wsi_jax.ops.tile_schedule import tile_batches


@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_every_tile_once_and_after_those_before_it(share, size):
    """Before it in its row or column: neighbours, and others whose slot it takes."""
    computed = np.random.default_rng(0).random((13, 9)) < share
    at = np.full(computed.shape, -1)
    for i, batch in enumerate(tile_batches(computed, size)):
        assert 0 < len(batch) <= size
        assert (at[tuple(batch.T)] == -1).all()
        at[tuple(batch.T)] = i
    assert ((at >= 0) == computed).all()
    for lines in (at, at.T):
        for line in lines:
            assert (np.diff(line[line >= 0]) > 0).all()


def test_batches_are_as_full_as_the_diagonals_allow():
    whole = np.ones((64, 64), bool)
    # Seven steps until eight tiles are independent, and as many at the end.
    assert len(tile_batches(whole, 8)) <= 64 * 64 / 8 + 7
    assert len(tile_batches(whole, 1)) == 64 * 64
    assert len(tile_batches(whole, 64)) == 2 * 64 - 1  # one for each diagonal
    assert tile_batches(np.zeros((3, 3), bool), 8) == []
