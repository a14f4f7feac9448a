import itertools

import numpy as np

from experiments.pretraining.tile_sets import Tiles, evaluation_tiles, training_tiles


def tiles(n=10):
    pixels = (
        np.zeros((n, 2, 2, 3), np.uint8)
        + np.arange(n, dtype=np.uint8)[:, None, None, None]
    )
    names = tuple(map(str, range(n)))
    return Tiles(pixels, (np.arange(n) % 3).astype(np.int32), names, names)


def stream(start=0, weights=None, **change):
    kwargs = {"seed": 0, "batch_size": 4, "balanced": False, "start": start}
    return training_tiles(tiles(), weights, **kwargs | change)


def test_batch_i_does_not_depend_on_where_a_run_started():
    whole = list(itertools.islice(stream(), 8))
    for bag, again in zip(whole[5:], stream(start=5), strict=False):
        np.testing.assert_array_equal(bag.x, again.x)
    other = next(stream(seed=1))
    assert not np.array_equal(whole[0].x, other.x)


def test_every_tile_comes_once_an_epoch_with_its_own_label_and_weight():
    epochs, weights = [], np.arange(10, dtype=np.float32)
    for bag in itertools.islice(stream(batch_size=5, weights=weights), 4):
        index = bag.x[:, 0, 0, 0]
        np.testing.assert_array_equal(bag.target, index % 3)
        assert bag.mask.shape == (5, 1)
        assert bag.mask.all()
        np.testing.assert_array_equal(bag.weight, weights[index])
        epochs.append(index)
    for epoch in (epochs[:2], epochs[2:]):
        assert sorted(np.concatenate(epoch)) == list(range(10))


def test_evaluation_is_in_order_and_what_fills_weighs_nothing():
    bags = list(evaluation_tiles(tiles(), batch_size=4))
    real = np.concatenate([bag.weight for bag in bags]) == 1
    x = np.concatenate([bag.x for bag in bags])[real]
    np.testing.assert_array_equal(x, tiles().pixels)
    assert [int(bag.mask.sum()) for bag in bags] == [4, 4, 2]
    assert bags[-1].target.tolist() == [2, 0, 0, 0]
