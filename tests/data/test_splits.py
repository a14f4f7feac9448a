import random
from collections import Counter, defaultdict

import pytest

from wsi_jax.data.cohort import Cohort, CohortError, Row
from wsi_jax.data.splits import Split, assign_folds, assign_splits, use_fold


def cohort(patients=60, slides=2, classes=("a", "b", "c"), split=""):
    rows = []
    for p in range(patients):
        label, site = classes[p % len(classes)], f"h{p // len(classes) % 2}"
        for s in range(slides):
            rows.append(Row(f"{p}-{s}", "", label, f"p{p}", split, site=site))
    return Cohort(tuple(rows), classes)


def splits_of(cohort, field="split"):
    return {row.slide_id: getattr(row, field) for row in cohort.rows}


def one_split_each(cohort, field="split"):
    names_of = defaultdict(set)
    for row in cohort.rows:
        names_of[row.patient_id].add(getattr(row, field))
    return all(len(names) == 1 for names in names_of.values())


def test_by_patient_and_by_class_and_by_site():
    done = assign_splits(cohort(), Split(train=0.6, val=0.2, test=0.2))
    assert one_split_each(done)
    counts = Counter((r.split, r.label, r.site) for r in done.rows)
    assert set(counts) == {
        (s, c, h) for s in ("train", "val", "test") for c in "abc" for h in ("h0", "h1")
    }
    assert {counts["train", c, h] for c in "abc" for h in ("h0", "h1")} == {12}
    assert {counts["test", c, h] for c in "abc" for h in ("h0", "h1")} == {4}


def test_the_order_of_rows_does_not_matter_and_the_seed_does():
    rows = list(cohort().rows)
    random.Random(0).shuffle(rows)
    shuffled = Cohort(tuple(rows), ("a", "b", "c"))
    config = Split()
    assert splits_of(assign_splits(cohort(), config)) == splits_of(
        assign_splits(shuffled, config)
    )
    assert splits_of(assign_folds(cohort(), 5, 0)) == splits_of(
        assign_folds(shuffled, 5, 0)
    )
    other = splits_of(assign_splits(cohort(), Split(seed=1)))
    assert other != splits_of(assign_splits(cohort(), config))


def test_an_official_test_set_and_patients_stay_where_they_are():
    """A patient's new slide joins the old ones."""
    old = cohort()
    given = tuple(
        row if i >= 30 else Row(**vars(row) | {"split": "test"})
        for i, row in enumerate(old.rows)
    )
    done = assign_splits(old._replace(rows=given), Split())
    assert Counter(r.split for r in done.rows[:30]) == {"test": 30}
    assert set(Counter(r.split for r in done.rows[30:])) == {"train", "val"}
    new = done._replace(rows=(*done.rows, Row("new", "", "a", "p3", "")))
    assert one_split_each(assign_splits(new, Split()))
    rows = (Row("1", "", "a", "p", "train"), Row("2", "", "a", "p", "test"))
    message = "patient 'p' is in splits 'train' and 'test'"
    with pytest.raises(CohortError, match=message):
        assign_splits(Cohort(rows, ("a",)), Split())


def test_a_class_has_a_patient_in_every_split_or_says_it_cannot():
    done = assign_splits(cohort(9), Split(train=0.9, val=0.05, test=0.05))
    assert {(r.split, r.label) for r in done.rows} == {
        (s, c) for s in ("train", "val", "test") for c in "abc"
    }
    assign_splits(cohort(8), Split(val=0.0))


def test_folds_are_disjoint_stratified_and_complete():
    done = assign_folds(cohort(), 5, 0)
    assert one_split_each(done, "fold")
    counts = Counter((r.fold, r.label) for r in done.rows)
    assert set(counts.values()) == {8}
    assert len(counts) == 15
    tests = [
        {r.slide_id for r in use_fold(done, k).rows if r.split == "test"}
        for k in range(5)
    ]
    assert sum(map(len, tests)) == len(done.rows) == len(set().union(*tests))
    for k in range(5):
        assert set(splits_of(use_fold(done, k)).values()) == {"train", "val", "test"}


def test_folds_leave_a_held_out_test_set_alone():
    held = cohort(6, split="test").rows
    rows = tuple(Row(**vars(r) | {"patient_id": f"t{r.patient_id}"}) for r in held)
    both = Cohort(rows + cohort().rows, ("a", "b", "c"))
    done = use_fold(assign_folds(both, 3, 0), 1)
    assert Counter(r.split for r in done.rows[:12]) == {"test": 12}
    assert Counter(r.split for r in done.rows[12:]) == {"train": 80, "val": 40}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # What mends it would be taken: a run wants all three splits.
        (
            lambda: assign_splits(cohort(8), Split()),
            r"'c' has 2 patients .* train, val, test, .* split in the manifest",
        ),
        (
            lambda: assign_splits(cohort(), Split(train=0.0, val=0.0, test=0.0)),
            r"no split has a share; set --config\.data",
        ),
        # Fewer folds are proposed only where they would do.
        (lambda: assign_folds(cohort(8), 3, 0), r"2 patients for 3 .* patients$"),
        (lambda: assign_folds(cohort(24), 9, 0), r"set --config\.data\.folds=8$"),
        (lambda: assign_folds(cohort(), 1, 0), r"--config\.data\.folds=1: .* least 3"),
        (lambda: use_fold(assign_folds(cohort(), 5, 0), 5), "no fold 5"),
    ],
)
def test_too_few_patients_for_splits_or_folds(call, message):
    with pytest.raises(CohortError, match=message):
        call()


def test_the_next_fold_validates_and_the_last_is_followed_by_the_first():
    """By number: of twelve folds 10 follows 9, and not 1."""
    done = assign_folds(cohort(), 12, 0)
    for k in range(12):
        used = {(r.fold, r.split) for r in use_fold(done, k).rows}
        others = {(str(f), "train") for f in range(12)}
        others -= {(str(f), "train") for f in (k, (k + 1) % 12)}
        assert used == others | {(str(k), "test"), (str((k + 1) % 12), "val")}
