"""Draws splits and folds: by patient, stratified by class and site, from a seed."""

import dataclasses
import hashlib
from collections import Counter, defaultdict

from wsi_jax.data.cohort import SPLITS, Cohort, CohortError


@dataclasses.dataclass(kw_only=True)
class Split:
    """How patients are shared among the splits.

    Attributes:
        train, val, test: relative shares; only their ratio counts.
        seed: seed of the draw.
    """

    train: float = 0.7
    val: float = 0.15
    test: float = 0.15
    seed: int = 0


def assign_splits(cohort: Cohort, config: Split) -> Cohort:
    """Gives every slide without a split one; slides that have a split keep it.

    Whole patients are drawn, each class in the shares asked for (at least one patient
    per split), spread evenly over the class's sites. A split that the manifest already
    names is left alone, so an official test set stays official: the open slides are
    shared among the other splits, or among all where all three are named. The draw
    hashes patients' names and does not depend on the order of the rows.

    CohortError: a patient is in two splits, or a class has too few patients.
    """
    named = {row.split for row in cohort.rows} - {""}
    shares = {s: getattr(config, s) for s in SPLITS if getattr(config, s) > 0}
    shares = {s: v for s, v in shares.items() if s not in named} or shares
    given = _given_splits(cohort)
    open_rows = tuple(row for row in cohort.rows if row.patient_id not in given)
    drawn = dict(given)
    for label, patients in _by_class(open_rows, config.seed).items():
        if not shares:
            raise CohortError(
                "no split has a share; set --config.data.split.train, "
                "--config.data.split.val or --config.data.split.test above 0"
            )
        if len(patients) < len(shares):
            raise CohortError(
                f"class {label!r} has {len(patients)} patients to draw for the splits "
                f"{', '.join(shares)}, each of which takes one at least; add patients, "
                "or name every slide's split in the manifest"
            )
        drawn |= zip(patients, _spread(len(patients), shares), strict=True)
    rows = (
        row if row.split else dataclasses.replace(row, split=drawn[row.patient_id])
        for row in cohort.rows
    )
    return cohort._replace(rows=tuple(rows))


def assign_folds(cohort: Cohort, folds: int, seed: int) -> Cohort:
    """Gives every slide outside the test split a fold "0" ... str(folds - 1).

    By patient, stratified by class and, within a class, by site. Slides whose split is
    "test" are held out of the cross-validation and get no fold.

    CohortError: a class has fewer patients than folds.
    """
    rows = tuple(row for row in cohort.rows if row.split != "test")
    if folds < 2:
        raise CohortError(
            f"--config.data.folds={folds}: cross-validation needs at least 3, or 2 "
            "beside a test split"
        )
    fold_of, dealt = {}, 0
    for label, patients in _by_class(rows, seed).items():
        if len(patients) < folds:
            fewer = len(patients) > (1 if len(rows) < len(cohort.rows) else 2)
            or_fewer = f", or set --config.data.folds={len(patients)}" if fewer else ""
            raise CohortError(
                f"class {label!r} has {len(patients)} patients for {folds} folds, each "
                f"of which takes one at least; add patients{or_fewer}"
            )
        # Dealing goes on where the last class stopped, so that folds are equally long.
        for i, patient in enumerate(patients, start=dealt):
            fold_of[patient] = str(i % folds)
        dealt += len(patients)
    rows = (
        dataclasses.replace(
            row, fold="" if row.split == "test" else fold_of[row.patient_id]
        )
        for row in cohort.rows
    )
    return cohort._replace(rows=tuple(rows))


def use_fold(cohort: Cohort, fold: int) -> Cohort:
    """Turns folds into splits.

    Where a test split is held out, fold `fold` validates and the others train. Where
    none is, fold `fold` tests, the next one validates and the others train.

    CohortError: there is no such fold, or none would be left to train.
    """
    names = sorted({row.fold for row in cohort.rows} - {""}, key=int)
    if str(fold) not in names:
        raise CohortError(f"no fold {fold} among {names}; run assign_folds first")
    held_out = any(row.split == "test" for row in cohort.rows)
    following = names[(names.index(str(fold)) + 1) % len(names)]
    splits = {str(fold): "val"} if held_out else {following: "val", str(fold): "test"}
    if len(names) <= len(splits):
        raise CohortError(
            f"--config.data.folds={len(names)} leaves none to train; use at least "
            f"{len(splits) + 1}"
        )
    splits = dict.fromkeys(names, "train") | splits | {"": "test"}
    rows = (dataclasses.replace(row, split=splits[row.fold]) for row in cohort.rows)
    return cohort._replace(rows=tuple(rows))


def _given_splits(cohort):
    given = {}
    for row in cohort.rows:
        if row.split and given.setdefault(row.patient_id, row.split) != row.split:
            raise CohortError(
                f"patient {row.patient_id!r} is in splits {given[row.patient_id]!r} "
                f"and {row.split!r} ({row.slide_id!r}); keep all their slides in one"
            )
    return given


def _by_class(rows, seed):
    """{class: its patients, by site and then by hash}; classes are sorted.

    A patient with slides of several classes counts for the rarest of them.
    """
    labels, sites = defaultdict(set), defaultdict(set)
    for row in rows:
        labels[row.patient_id].add(row.label)
        sites[row.patient_id].add(row.site)
    patients_of = Counter(label for several in labels.values() for label in several)
    classes = defaultdict(list)
    for patient, several in labels.items():
        label = min(several, key=lambda name: (patients_of[name], name))
        code = hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()
        classes[label].append((min(sites[patient]), code, patient))
    return {
        label: [patient for *_, patient in sorted(classes[label])]
        for label in sorted(classes)
    }


def _spread(n, shares):
    """n splits in the given shares (each at least once), evenly along the list."""
    total = sum(shares.values())
    ideal = {s: n * v / total for s, v in shares.items()}
    quota = {s: max(1, int(v)) for s, v in ideal.items()}
    while sum(quota.values()) != n:
        step = 1 if sum(quota.values()) < n else -1
        movable = [s for s in quota if quota[s] + step >= 1]
        split = max(movable, key=lambda s: step * (ideal[s] - quota[s]))
        quota[split] += step
    taken = dict.fromkeys(quota, 0)
    splits = []
    for i in range(1, n + 1):
        left = [s for s in quota if taken[s] < quota[s]]
        split = max(left, key=lambda s: quota[s] * i / n - taken[s])
        taken[split] += 1
        splits.append(split)
    return splits
