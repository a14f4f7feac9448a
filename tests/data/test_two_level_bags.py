"""Bags at two resolutions pair a tile with its children by where they lie."""

import itertools

import numpy as np
import pytest
from data.feature_files import metadata

from wsi_jax.data.bag_store import Loading
from wsi_jax.data.bags import Bags, training_bags
from wsi_jax.data.distilled import DistilledBags, is_distilled, write_distilled
from wsi_jax.data.features import FeatureError, read_coords, write_features
from wsi_jax.data.order import slides_of_batch
from wsi_jax.data.two_level_bags import TwoLevelBags, pair
from wsi_jax.slides.grid import children, level0
from wsi_jax.types import TwoLevelFeatures

K, SIDE, MPP, SLIDE_MPP = 3, 32, 2.0, 0.243
LABELS = np.array([0, 1, 0, 1, 1], np.int32)
WEIGHTS = np.linspace(0.5, 2, 5).astype(np.float32)
LENGTHS = (3, 9, 5, 6, 4)
LOADING = Loading(min_bucket=4, threads=2)


def origin(name, at, /, **changes):
    made = {"slide_id": name, "shape": (9000, 9000), "mpp": SLIDE_MPP, "size_px": SIDE}
    made |= {"target_mpp": at, "config_hash": f"{name} at {at}"}
    return metadata(**made | changes)


def write_pair(folder, slide, cells, keep_low=None, keep_high=None, **changes):
    """Feature files of cells (row, column) and of their children, less what is left.

    A tile's features are [slide, row, column], a child's [slide, row, column] of its
    own, in the grid of children.
    """
    name, cells = f"s{slide}", np.asarray(cells)
    below = children(cells, 1, K)
    low = cells if keep_low is None else cells[keep_low]
    high = below if keep_high is None else below[keep_high]
    features = lambda at: np.column_stack([np.full(len(at), float(slide)), at])
    corners = lambda at, mpp: level0(at * SIDE, mpp, SLIDE_MPP)
    paths = folder / "low" / f"{name}.h5", folder / "high" / f"{name}.h5"
    write_features(paths[0], features(low), corners(low, MPP), origin(name, MPP))
    made = origin(name, MPP / K, **changes)
    write_features(paths[1], features(high), corners(high, MPP / K), made)
    return paths


def some_cells(n, seed=0):
    """n places of a grid of 8 x 8, row by row."""
    chosen = np.sort(np.random.default_rng(seed).permutation(64)[:n])
    return np.stack(np.divmod(chosen, 8), -1)


def paired(low, high, k=K):
    return pair(read_coords(low), read_coords(high), k)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    made = [write_pair(folder, i, some_cells(n, i)) for i, n in enumerate(LENGTHS)]
    return tuple(zip(*made, strict=True))


@pytest.fixture
def bags(paths):
    return TwoLevelBags(*paths, K, LABELS, WEIGHTS, LOADING)


def batches(bags, n, **options):
    given = {"seed": 0, "batch_size": 3, "balanced": True, "start": 0}
    given |= {"process": 0, "processes": 1} | options
    return list(itertools.islice(training_bags(bags, **given), n))


def test_children_stand_beside_their_tile_row_by_row(bags):
    low, high = bags.load(1)
    assert low.dtype == high.dtype == np.float16
    assert high.shape == (9, K * K, 3)
    np.testing.assert_array_equal(low[:, 1:], some_cells(9, 1))
    y, x = np.divmod(np.arange(K * K), K)
    np.testing.assert_array_equal(high[..., 1], low[:, 1:2] * K + y)
    np.testing.assert_array_equal(high[..., 2], low[:, 2:] * K + x)


def test_a_batch_is_that_of_bags_with_children_beside(bags, paths):
    plain = Bags(paths[0], LABELS, WEIGHTS, LOADING)
    for step, (one, two) in enumerate(
        zip(batches(bags, 4), batches(plain, 4), strict=True)
    ):
        wanted = slides_of_batch(0, step, LABELS, 3, True)
        np.testing.assert_array_equal(one.slide, wanted)
        for field in ("mask", "target", "weight"):
            np.testing.assert_array_equal(
                getattr(one.bag, field), getattr(two.bag, field)
            )
        assert isinstance(one.bag.x, TwoLevelFeatures)
        np.testing.assert_array_equal(one.bag.x.low, two.bag.x)
        parents = one.bag.x.high[:, :, 0, 1:] // K
        np.testing.assert_array_equal(parents, one.bag.x.low[..., 1:])
        assert not one.bag.x.high[~one.bag.mask].any()


@pytest.mark.parametrize("lost", [9, 13, 17])
def test_a_tile_with_an_unreadable_child_is_left_out(tmp_path, lost):
    """The second tile lacks its first child, one within, or its last."""
    keep = np.arange(5 * K * K) != lost
    rows, below = paired(*write_pair(tmp_path, 0, some_cells(5), keep_high=keep))
    assert rows.tolist() == [0, 2, 3, 4]
    was = np.arange(5 * K * K)[keep]
    wanted = np.delete(np.arange(5 * K * K).reshape(5, -1), 1, 0)
    np.testing.assert_array_equal(was[below], wanted)


def test_a_tile_that_was_not_read_leaves_its_children_out(tmp_path):
    """Nothing is paired with nothing."""
    keep = np.array([True, False, True])
    low, high = write_pair(tmp_path, 0, some_cells(3), keep_low=keep)
    rows, below = paired(low, high)
    assert rows.tolist() == [0, 1]
    np.testing.assert_array_equal(below, [range(9), range(18, 27)])
    bags = TwoLevelBags([low], [high], K, LABELS[:1], None, LOADING)
    assert bags.lengths.tolist() == [2]
    for none, n in (("keep_low", 3), ("keep_high", 27)):
        kept = {none: np.zeros(n, bool)}
        rows, below = paired(*write_pair(tmp_path, 0, some_cells(3), **kept))
        assert (rows.shape, below.shape) == ((0,), (0, K * K))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "other"}, "encoder: none and other"),
        ({"slide_id": "t"}, "slide: s0 and t"),
        ({"size_px": 64}, "px to a side: 32 and 64"),
        ({"target_mpp": 1.0}, r"um/px of the children: 0\.66\d* and 1\.0"),
        ({"mpp": 0.25}, r"level 0: 0\.243 and 0\.25"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, change, message):
    low, high = write_pair(tmp_path, 0, some_cells(2), **change)
    with pytest.raises(FeatureError, match=f"children.*disagree, .*{message}"):
        paired(low, high)
    write_features(high, np.zeros((2, 5)), np.zeros((2, 2), int), origin("s0", MPP / K))
    with pytest.raises(FeatureError, match=r"has 3 features .*s0\.h5 has 5"):
        TwoLevelBags([low], [high], K, LABELS[:1], None, LOADING)


def test_the_fingerprint_is_that_of_both_files_and_of_what_is_left(tmp_path):
    fingerprints = set()
    variants = {}, {"keep_high": np.arange(18) > 0}, {"config_hash": "another"}
    for i, kwargs in enumerate(variants):
        low, high = write_pair(tmp_path / str(i), 0, some_cells(2), **kwargs)
        bags = TwoLevelBags([low], [high], K, LABELS[:1], None, LOADING)
        fingerprints |= set(bags.fingerprints)
    assert len(fingerprints) == 3


def write_some(folder, fingerprint="made with this"):
    """Distilled arrays of all slides, low in float16 and high in float32."""
    paths = [folder / f"s{i}.h5" for i in range(len(LENGTHS))]
    for i, (path, n) in enumerate(zip(paths, LENGTHS, strict=True)):
        low = np.full((n, 3), i, np.float16)
        high = np.full((n, 3), i + 1 / 3, np.float32)
        write_distilled(path, TwoLevelFeatures(low, high), fingerprint)
    return paths


def test_what_was_distilled_comes_in_the_same_batches(tmp_path, bags):
    paths = write_some(tmp_path)
    fingerprints = ["made with this"] * len(paths)
    distilled = DistilledBags(paths, fingerprints, LABELS, WEIGHTS, LOADING)
    assert distilled.d == 3
    for one, two in zip(batches(distilled, 4), batches(bags, 4), strict=True):
        np.testing.assert_array_equal(one.slide, two.slide)
        np.testing.assert_array_equal(one.bag.mask, two.bag.mask)
        low, high = one.bag.x
        assert (low.dtype, high.dtype) == (np.float16, np.float32)
        wanted = np.where(one.bag.mask, one.slide[:, None] + np.float32(1 / 3), 0)
        np.testing.assert_array_equal(high[..., 0], wanted.astype(np.float32))


def test_what_was_distilled_otherwise_is_refused(tmp_path):
    """What is not finite is not even kept."""
    paths = write_some(tmp_path)
    assert all(is_distilled(path, "made with this") for path in paths)
    assert not is_distilled(paths[0], "made with that")
    assert not is_distilled(tmp_path / "none.h5", "made with this")
    fingerprints = ["made with this"] * 4 + ["that"]
    with pytest.raises(FeatureError, match=r"s4\.h5 was made with .*this.*are that"):
        DistilledBags(paths, fingerprints, LABELS, WEIGHTS, LOADING)
    paths[0].write_bytes(paths[0].read_bytes()[:-9])
    assert not is_distilled(paths[0], "made with this")
    bad = TwoLevelFeatures(np.zeros((2, 3)), np.array([[np.nan] * 3] * 2))
    with pytest.raises(FeatureError, match=r"high distilled .*learning rate"):
        write_distilled(tmp_path / "bad.h5", bad, "")
    assert not list(tmp_path.glob("bad*"))
