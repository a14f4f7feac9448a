import itertools
import shutil

import h5py
import numpy as np
import pytest
from data.feature_files import metadata

from wsi_jax.data.bags import Bags, Loading, evaluation_bags, training_bags
from wsi_jax.data.features import FeatureError, write_features
from wsi_jax.data.order import slides_of_batch
from wsi_jax.types import bucket

LENGTHS = (3, 9, 0, 17, 4, 8, 5)
LABELS = np.array([0, 1, 0, 1, 1, 1, 0], np.int32)
WEIGHTS = np.linspace(0.5, 2, 7).astype(np.float32)
ONE = {"seed": 0, "batch_size": 4, "process": 0, "processes": 1}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    for i, n in enumerate(LENGTHS):
        # Feature (slide, tile) is recognisable: [slide + 1, tile].
        x = np.stack([np.full(n, i + 1.0), np.arange(n)], -1)
        write(folder / f"{i}.h5", x)
    return [folder / f"{i}.h5" for i in range(len(LENGTHS))]


def write(path, x, **changes):
    write_features(path, x, np.zeros((len(x), 2), int), metadata(**changes))


def load(paths, **options):
    options = {"min_bucket": 4, "threads": 4} | options
    return Bags(paths, LABELS, WEIGHTS, Loading(**options))


def train(bags, n, **options):
    options = ONE | {"balanced": False, "start": 0} | options
    return list(itertools.islice(training_bags(bags, **options), n))


def evaluate(bags, **options):
    given = {"batch_size": 4, "process": 0, "processes": 1} | options
    return list(evaluation_bags(bags, **given))


def same(one, two):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.slide, b.slide)
        for x, y in zip(a.bag, b.bag, strict=True):
            np.testing.assert_array_equal(x, y)


def test_what_a_batch_holds(paths):
    for step, (bag, slide) in enumerate(train(load(paths), 6)):
        want = slides_of_batch(0, step, LABELS, 4, False)
        np.testing.assert_array_equal(slide, want)
        lengths = np.array(LENGTHS)[slide]
        n = bucket(int(max(lengths)), 4)
        assert (bag.x.shape, bag.x.dtype) == ((4, n, 2), np.float16)
        np.testing.assert_array_equal(bag.mask, np.arange(n) < lengths[:, None])
        np.testing.assert_array_equal(bag.target, LABELS[slide])
        np.testing.assert_array_equal(bag.weight, WEIGHTS[slide])
        place = np.arange(n) * bag.mask
        expected = np.stack([bag.mask * (slide[:, None] + 1), place], -1)
        np.testing.assert_array_equal(bag.x, expected)
    lengths = {0: 4, 4: 4, 5: 8, 16: 16, 17: 32}
    assert {n: bucket(n, 4) for n in lengths} == lengths
    assert (bucket(1, 1), bucket(3, 1)) == (1, 4)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("max_tiles", [None, 6])
def test_resumed_at_step_k_is_the_tail_of_the_uninterrupted_run(
    paths, balanced, max_tiles
):
    bags = load(paths, max_tiles=max_tiles)
    whole = train(bags, 7, balanced=balanced)
    again = load(paths, max_tiles=max_tiles, cache_gib=0.0, threads=1)
    same(train(again, 4, balanced=balanced, start=3), whole[3:])


def test_max_tiles_draws_anew_at_every_step_and_only_in_training(paths):
    bags = load(paths, max_tiles=6)
    drawn = set()
    for bag, slide in train(bags, 14):
        assert bag.x.shape[1] <= 8
        assert bag.mask.sum(1).max() <= 6
        drawn |= {
            tuple(x[m][:, 1])
            for x, m, i in zip(bag.x, bag.mask, slide, strict=True)
            if i == 3
        }
    assert len(drawn) == 8
    assert all(len(set(tiles)) == 6 for tiles in drawn)
    (bag, _), _ = evaluate(bags)
    np.testing.assert_array_equal(bag.mask.sum(1), LENGTHS[:4])


def test_evaluation_goes_once_through_all_and_fills_up_with_nothing(paths):
    run = evaluate(load(paths), batch_size=3)
    assert [b.slide.tolist() for b in run] == [[0, 1, 2], [3, 4, 5], [6, -1, -1]]
    bag = run[-1].bag
    np.testing.assert_array_equal(bag.weight, [WEIGHTS[6], 0, 0])
    assert bag.mask.sum(1).tolist() == [5, 0, 0]
    assert not bag.x[1:].any()


def test_processes_load_their_rows_of_one_batch(paths):
    bags = load(paths, max_tiles=6)
    flat = lambda run: [(*batch.bag, batch.slide) for batch in run]
    for run in (lambda **p: train(bags, 5, **p), lambda **p: evaluate(bags, **p)):
        parts = [flat(run(process=p, processes=2)) for p in range(2)]
        for whole, *two in zip(flat(run()), *parts, strict=True):
            for field, *halves in zip(whole, *two, strict=True):
                np.testing.assert_array_equal(np.concatenate(halves), field)


def test_a_cohort_that_fits_is_read_once_and_one_that_does_not_is_read_again(paths):
    for cache_gib, kept in ((1.0, 7), (80e-9, 0)):
        bags = load(paths, cache_gib=cache_gib)
        train(bags, 4)
        first, second = bags.load(3), bags.load(3)
        assert (first is second) == bool(kept)


def test_fingerprints_are_of_the_settings_or_else_of_the_file(paths, tmp_path):
    """Other tools write files that do not name their settings."""
    here = shutil.copy(paths[1], tmp_path)
    fingerprint = lambda path: Bags([path], LABELS[:1], None, Loading()).fingerprints[0]
    as_made = fingerprint(here)
    with h5py.File(here, "r+") as file:
        del file["coords"].attrs["config_hash"]
    before = fingerprint(here)
    assert before != as_made
    assert before == fingerprint(shutil.copy(here, tmp_path / "copy.h5"))
    with h5py.File(here, "r+") as file:
        file["features"][-1, -1] += 1
    assert fingerprint(here) != before
    write(here, np.ones((9, 2)), config_hash="other")
    assert fingerprint(here) != as_made


def test_bad_files_are_all_named_before_the_first_step(paths, tmp_path):
    cut, wide = tmp_path / "cut.h5", tmp_path / "wide.h5"
    cut.write_bytes(paths[3].read_bytes()[:-1])
    message = r"(?s)cut\.h5: truncated.*none\.h5: no such"
    with pytest.raises(FeatureError, match=message):
        load([paths[0], cut, tmp_path / "none.h5", *paths[3:]])
    write(wide, np.zeros((2, 3)))
    with pytest.raises(FeatureError, match=r"one width.*wide\.h5 has 3"):
        load([*paths[1:], wide])
    with pytest.raises(FeatureError, match="no feature files"):
        Bags([], LABELS[:0], None, Loading())


def test_a_file_that_changes_under_training_is_named(paths, tmp_path):
    path = shutil.copy(paths[0], tmp_path)
    bags = load([path, *paths[1:]])
    write(path, np.zeros((2, 2)))
    with pytest.raises(FeatureError, match=r"0\.h5: had 3 tiles and now has 2"):
        train(bags, 2)
