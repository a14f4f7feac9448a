"""Intervals hold what they promise: by brute force, by closed form, by simulation."""

import numpy as np
import pytest
from scipy import special, stats

from wsi_jax.evals import intervals
from wsi_jax.evals.metrics import auc

Z = stats.norm.ppf(0.975)


def draw(seed, m=15, n=22, shift=1.0, digits=1):
    """Scores of two classifiers that agree a little, rounded so that they tie."""
    rng = np.random.default_rng(seed)
    positive = np.r_[np.ones(m, bool), np.zeros(n, bool)]
    common = rng.normal(size=m + n) + shift * positive
    a, b = (np.round(common + rng.normal(size=m + n), digits) for _ in range(2))
    return positive, a, b


def components(positive, scores):
    """DeLong's, by the O(n^2) kernel: 1 for a win, 1/2 for a tie."""
    gap = scores[positive][:, None] - scores[~positive]
    wins = (gap > 0) + 0.5 * (gap == 0)
    return wins.mean(1), wins.mean(0)


def test_delong_is_the_brute_force_formula():
    positive, a, _ = draw(0)
    v10, v01 = components(positive, a)
    sd = np.sqrt(v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01))
    area = v10.mean()
    half = Z * sd / (area * (1 - area))
    ends = 1 / (1 + np.exp(-(np.log(area / (1 - area)) + np.array([-half, half]))))
    interval = intervals.delong(positive, a)
    np.testing.assert_allclose(interval, [area, *ends], rtol=1e-12)
    assert interval.value == pytest.approx(auc(positive, a))


def test_the_paired_difference_is_the_brute_force_formula():
    positive, a, b = draw(1)
    both = zip(components(positive, a), components(positive, b), strict=True)
    gaps = [one - two for one, two in both]
    sd = np.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps))
    value = gaps[0].mean()
    interval = intervals.delong_difference(positive, a, b)
    expected = value, value - Z * sd, value + Z * sd, 2 * stats.norm.sf(abs(value) / sd)
    np.testing.assert_allclose(interval, expected, rtol=1e-10)
    other = intervals.delong_difference(positive, b, a)
    mirrored = -other.value, -other.hi, -other.lo, other.p
    np.testing.assert_allclose(interval, mirrored, rtol=1e-12)
    assert intervals.delong_difference(positive, a, 3 * a + 1) == (0, 0, 0, 1)


def test_copies_of_a_patients_slide_say_nothing_new():
    positive, a, b = draw(3)
    patients = np.arange(len(a))
    thrice = [np.repeat(x, 3) for x in (positive, a, b, patients)]
    # The error is the same, but the variance of patients is an estimate: t for normal.
    width = lambda ends: np.diff(special.logit(ends[1:]))[0]
    expected = width(intervals.delong(positive, a)) * stats.t.ppf(0.975, 14) / Z
    interval = intervals.delong(thrice[0], thrice[1], thrice[3])
    assert interval.value == pytest.approx(auc(positive, a))
    assert width(interval) == pytest.approx(expected)
    value, lo, hi, _ = intervals.delong_difference(positive, a, b)
    error = (hi - lo) / 2 / Z
    q = stats.t(14)
    expected = value, value - q.ppf(0.975) * error, value + q.ppf(0.975) * error
    np.testing.assert_allclose(
        intervals.delong_difference(*thrice),
        (*expected, 2 * q.sf(abs(value) / error)),
        rtol=1e-8,
    )
    naive = intervals.delong(thrice[0], thrice[1])
    assert naive.hi - naive.lo < 0.7 * np.diff(intervals.delong(positive, a)[1:])[0]


def test_patients_with_both_kinds_of_slide_are_obuchowskis_formula():
    positive, a, _ = draw(8)
    patients = np.random.default_rng(8).integers(0, 12, len(a))
    v10, v01 = components(positive, a)
    area, m, n = v10.mean(), len(v10), len(v01)
    ids = np.unique(patients)
    ill = [v10[patients[positive] == i] for i in ids]
    well = [v01[patients[~positive] == i] for i in ids]
    up = np.array([v.sum() - len(v) * area for v in ill])
    down = np.array([v.sum() - len(v) * area for v in well])
    some_ill, some_well = (sum(len(v) > 0 for v in of) for of in (ill, well))
    s10 = some_ill / ((some_ill - 1) * m) * (up**2).sum()
    s01 = some_well / ((some_well - 1) * n) * (down**2).sum()
    s11 = len(ids) / (len(ids) - 1) * (up * down).sum()
    sd = np.sqrt(s10 / m + s01 / n + 2 * s11 / (m * n))
    _, lo, hi = intervals.delong(positive, a, patients)
    width = np.log(hi / (1 - hi)) - np.log(lo / (1 - lo))
    q = stats.t.ppf(0.975, min(some_ill, some_well) - 1)
    np.testing.assert_allclose(width, 2 * q * sd / (area * (1 - area)), rtol=1e-10)


def test_the_mean_auc_of_two_classes_is_the_auc():
    """And of three perfect classes it has Newcombe's interval of the rarest."""
    positive, a, _ = draw(9)
    p = np.stack([-a, a], -1)
    patients = np.random.default_rng(9).integers(0, 20, len(a))
    for who in (None, patients):
        one = intervals.delong(positive, a, who)
        two = intervals.macro_auc(positive.astype(int), p, who)
        np.testing.assert_allclose(one, two, rtol=1e-10)
    labels = np.repeat([0, 1, 2], [4, 9, 7])
    interval = intervals.macro_auc(labels, np.eye(3)[labels])
    assert interval == (1, *intervals.newcombe(1.0, 4, 16))


def grouped(seed, sizes=((5, 9), (3, 4), (7, 2))):
    """Scores of two classifiers in groups, each on a scale of its own."""
    drawn = [draw(seed + k, m, n) for k, (m, n) in enumerate(sizes)]
    positive, a, b = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    group = np.repeat(np.arange(len(sizes)), [m + n for m, n in sizes])
    return positive, a + 10 * group, b, group


def test_the_auc_within_groups_counts_pairs_of_one_group():
    positive, a, _, group = grouped(20)
    within = [(positive & (group == k), ~positive & (group == k)) for k in range(3)]
    wins = [components(up[up | down], a[up | down])[0] for up, down in within]
    pairs = [up.sum() * down.sum() for up, down in within]
    expected = np.average([one.mean() for one in wins], weights=pairs)
    assert intervals.delong(positive, a, groups=group).value == pytest.approx(expected)
    weights = np.random.default_rng(0).integers(0, 3, (2, len(a)))
    for times, weighted in zip(weights, auc(positive, a, weights, group), strict=True):
        copies = [np.repeat(x, times) for x in (positive, a, group)]
        assert weighted == pytest.approx(auc(*copies[:2], groups=copies[2]))


def test_scales_of_groups_do_not_matter_and_one_group_is_none():
    positive, a, b, group = grouped(30)
    shifted = (1 + group) * a - 5 * group
    alone = lambda x, groups=group: intervals.delong(positive, x, groups=groups)
    gap = lambda x, y: intervals.delong_difference(positive, x, y, groups=group)
    np.testing.assert_allclose(alone(a), alone(shifted), rtol=1e-12)
    np.testing.assert_allclose(gap(a, b), gap(shifted, b), rtol=1e-12)
    np.testing.assert_allclose(alone(a, None), alone(a, np.zeros(len(a))), rtol=1e-12)
    assert gap(a, shifted) == (0, 0, 0, 1)


def test_the_influence_within_groups_is_the_derivative():
    positive, a, _, group = grouped(40)
    _, influence = intervals._influence(positive, a, group)
    step = 1e-6
    moved = auc(positive, a, 1 + step * np.eye(len(a)), group)
    slope = (moved - auc(positive, a, groups=group)) / step
    np.testing.assert_allclose(influence, slope, atol=1e-5)


def test_groups_without_a_pair_have_no_auc():
    positive, group = np.array([True, True, False]), np.array([0, 0, 1])
    assert np.isnan(intervals.delong(positive, np.arange(3.0), groups=group)).all()
    assert np.isnan(auc(positive, np.arange(3.0), groups=group))
    perfect = np.arange(24) % 2 == 1
    alone = intervals.delong(perfect, perfect.astype(float))
    parted = intervals.delong(perfect, perfect.astype(float), groups=np.arange(24) // 6)
    assert 0 < parted.lo < alone.lo < alone.hi == parted.hi == 1  # fewer pairs


def test_the_interval_within_folds_covers_the_truth():
    truth, rng = stats.norm.cdf(1.47 / np.sqrt(2)), np.random.default_rng(3)
    positive, fold = np.arange(100) < 20, np.arange(100) % 5
    held = []
    for _ in range(400):
        scores = rng.normal(size=100) + 1.47 * positive
        scores = np.linspace(0.5, 2, 5)[fold] * scores + np.linspace(-1, 1, 5)[fold]
        _, lo, hi = intervals.delong(positive, scores, groups=fold)
        held.append(lo <= truth <= hi)
    assert 0.917 <= np.mean(held) <= 0.985  # three standard errors of 400 trials


def test_the_interval_covers_when_patients_have_several_slides():
    rng, truth = np.random.default_rng(1), stats.norm.cdf(1.19 / np.sqrt(2))
    patients = np.repeat(np.arange(60), 4)
    positive = patients < 30
    held = np.zeros(2)
    for _ in range(300):
        own = np.sqrt(0.7) * rng.normal(size=60)[patients]
        scores = own + np.sqrt(0.3) * rng.normal(size=240) + 1.19 * positive
        for k, of in enumerate((patients, None)):
            _, lo, hi = intervals.delong(positive, scores, of)
            held[k] += lo <= truth <= hi
    by_patient, by_slide = held / 300
    assert by_patient >= 0.912
    assert by_slide < 0.85  # what the test must be able to see


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 30), (30, 30), (80, 120)])
def test_perfect_separation_is_not_certainty(m, n):
    """And all scores tied are a guess of some width."""
    positive = np.r_[np.ones(m, bool), np.zeros(n, bool)]
    value, lo, hi = intervals.delong(positive, positive.astype(float))
    assert (value, hi) == (1, 1)
    more = (m + n) / 2 - 1
    spread = 1 + more * ((1 - lo) / (2 - lo) + lo / (1 + lo))
    assert (1 - lo) ** 2 == pytest.approx(Z**2 * lo * (1 - lo) * spread / (m * n))
    assert 0 < lo < 1
    worst = intervals.delong(positive, -positive.astype(float))
    np.testing.assert_allclose(worst, [0, 0, 1 - lo], atol=1e-9)
    value, lo, hi = intervals.delong(positive, np.zeros(m + n))
    assert value == 0.5
    assert lo == pytest.approx(1 - hi)
    assert hi - lo > 0.1


def test_two_perfect_classifiers_may_still_differ():
    positive = np.arange(40) < 20
    rng = np.random.default_rng(0)
    a, b = (positive + 0.1 * rng.random(40) for _ in range(2))
    value, lo, hi, p = intervals.delong_difference(positive, a, b)
    assert value == 0
    assert p == 1
    assert lo == pytest.approx(-hi)
    assert hi == pytest.approx(1 - intervals.delong(positive, a).lo)


def test_p_and_interval_tell_one_story():
    significant = set()
    for n in range(1, 12):  # perfect against constant, where the variance is zero
        positive = np.arange(2 * n) < n
        one, two = positive.astype(float), np.zeros(2 * n)
        for a, b in ((one, two), (two, one)):
            value, lo, hi, p = intervals.delong_difference(positive, a, b)
            assert abs(value) == 0.5
            assert (p < 0.05) == (lo > 0 or hi < 0)
            significant.add(p < 0.05)
    assert significant == {True, False}


def test_a_missing_class_has_no_interval():
    nothing = np.zeros(5, bool)
    assert np.isnan(intervals.delong(nothing, np.arange(5.0))).all()
    both = np.arange(5.0), np.arange(5.0)[::-1]
    assert np.isnan(intervals.delong_difference(nothing, *both)).all()
    with pytest.raises(ValueError, match="2 patients for 5 slides"):
        intervals.delong(nothing, np.arange(5.0), ["a", "b"])


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 17), (200, 201)])
def test_wilson_is_scipys(k, n):
    theirs = stats.binomtest(k, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(intervals.wilson(k / n, n), theirs, atol=1e-12)
