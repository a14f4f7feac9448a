"""How often each metric's interval holds the truth, on simulated cohorts.

    python -m benchmarks.coverage --out benchmarks/results/coverage.json

A case fixes patients, slides, labels and how well a calibrated model separates the
classes; a cohort is a draw of its scores. `coverage` is the share of cohorts whose 95 %
interval holds the value of a million slides of the same classes, and `width_ratio` the
mean width over the distance from the 2.5th to the 97.5th percentile of the estimates.
The last rows are of cross-validation: `bias` is what folds add to a metric.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from benchmarks import record
from wsi_jax.evals.metrics import slide_metrics
from wsi_jax.evals.summary import FEW, measure

COHORTS, QUICK = 4000, 500
COVERAGE, WIDTH = 0.93, 1.3  # least and most, with FEW patients a class or more
SLIDES = 1_000_000
WITHIN = 0.5  # share of the variance that slides of a patient have in common
FOLDS = 5


class Case(NamedTuple):
    """Cohorts that differ by chance alone.

    Attributes:
        name: in words.
        labels: label of each slide [n].
        patients: patient of each slide [n].
        centres: mean of each class's scores, whose deviation is 1 [c d].
        groups: fold of each slide [n], each with a scale of its own; or None.
    """

    name: str
    labels: np.ndarray
    patients: np.ndarray
    centres: np.ndarray
    groups: np.ndarray | None = None

    @property
    def shares(self) -> np.ndarray:
        """Share of the slides that each class has [c]."""
        return np.bincount(self.labels) / len(self.labels)

    @property
    def threshold(self) -> float | None:
        """Where sensitivity and specificity of two classes are alike."""
        return float(self.shares[1]) if len(self.shares) == 2 else None


def two_centres(auc: float) -> np.ndarray:
    """Centres [2 1] of two classes with this AUC."""
    return np.array([[0.0], [np.sqrt(2) * stats.norm.ppf(auc)]])


def three_centres(distance: float) -> np.ndarray:
    """Centres [3 2] of three classes, each as far from both others."""
    angles = 2 * np.pi * np.arange(3) / 3
    return np.stack([np.sin(angles), np.cos(angles)], -1) * distance / np.sqrt(3)


def labels_of(n: int, shares: tuple[float, ...]) -> np.ndarray:
    """Labels [n] with the classes' shares, mixed so that any stretch has them all."""
    ends = np.round(n * np.cumsum(shares)).astype(int)
    labels = np.searchsorted(ends, np.arange(n), side="right")
    return np.random.default_rng(0).permutation(labels)


def cases() -> Iterator[Case]:
    """All cases, from one slide a patient to five folds."""
    two = [(1 - share, share) for share in (0.2, 0.35, 0.5)]
    for n in (30, 60):
        alone = np.arange(n)
        several = np.repeat(alone, 1 + alone % 5)
        for shares in two:
            labels = labels_of(n, shares)
            what = f"{n} patients, prevalence {shares[1]}"
            for auc in (0.75, 0.85, 0.92, 0.98):
                yield Case(f"{what}, AUC {auc}", labels, alone, two_centres(auc))
            for auc in (0.75, 0.9):
                name = f"1 to 5 slides each of {what}, AUC {auc}"
                yield Case(name, labels[several], several, two_centres(auc))
            if shares[1] > 0.2:
                mixed = labels_of(len(several), shares)
                name = f"both classes in patients, {what}, AUC 0.85"
                yield Case(name, mixed, several, two_centres(0.85))
        for shares in ((1 / 3, 1 / 3, 1 / 3), (0.2, 0.3, 0.5)):
            labels = labels_of(n, shares)
            words = ", ".join(map(str, np.bincount(labels)))
            for distance in (1.2, 2.4):
                name = f"three classes of {words} patients, {distance} apart"
                yield Case(name, labels, alone, three_centres(distance))
            name = f"1 to 5 slides each, three classes of {words} patients, 1.8 apart"
            yield Case(name, labels[several], several, three_centres(1.8))
    for share in (0.2, 0.5):
        folds = np.arange(100) % FOLDS
        labels = (np.arange(100) // FOLDS < share * 100 / FOLDS).astype(int)
        name = f"five folds of models on five scales, 100 patients, prevalence {share}"
        yield Case(name, labels, np.arange(100), two_centres(0.85), folds)


def scores(case: Case, rng: np.random.Generator) -> np.ndarray:
    """Scores [n d] of one cohort."""
    noise = lambda n: rng.normal(size=(n, case.centres.shape[1]))
    n = len(case.labels)
    _, index, counts = np.unique(case.patients, return_inverse=True, return_counts=True)
    own = np.zeros((n, 1)) if counts.max() == 1 else np.full((n, 1), WITHIN)
    error = np.sqrt(own) * noise(len(counts))[index] + np.sqrt(1 - own) * noise(n)
    return case.centres[case.labels] + error


def posterior(case: Case, x: np.ndarray) -> np.ndarray:
    """Probabilities [n c] of a calibrated model that is given scores [n d]."""
    distance = ((x[:, None] - case.centres) ** 2).sum(-1)
    return special.softmax(np.log(case.shares) - distance / 2, -1)


def rescaled(p: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Probabilities [n 2] as five models give them: slopes .5 to 2, offsets of 1."""
    slope, offset = np.linspace(0.5, 2, FOLDS), np.linspace(-1, 1, FOLDS)
    positive = special.expit(slope[folds] * special.logit(p[:, 1]) + offset[folds])
    return np.stack([1 - positive, positive], -1)


def truth(case: Case, slides: int = SLIDES) -> dict[str, float]:
    """The metrics of very many slides, of the classes in the case's shares."""
    counts = np.round(slides * case.shares).astype(int)
    labels = np.repeat(np.arange(len(counts)), counts)
    many = case._replace(labels=labels, patients=np.arange(len(labels)))
    p = posterior(case, scores(many, np.random.default_rng(1)))
    return slide_metrics(labels, p, case.threshold)


def covered(case: Case, cohorts: int, slides: int = SLIDES) -> list[dict]:
    """Rows of a case, one of each metric that has an interval."""
    rng, true = np.random.default_rng(2), truth(case, slides)
    classes = [f"class {k}" for k in range(len(case.shares))]
    summaries = []
    for _ in range(cohorts):
        p = posterior(case, scores(case, rng))
        if case.groups is not None:
            p = rescaled(p, case.groups)
        summary = measure(
            case.labels, p, classes, case.threshold, case.patients, case.groups
        )
        summaries.append(summary)
    names = [name for name in true if f"{name}_lo" in summaries[0]]
    if case.groups is not None:
        names = ["auc"]  # all else is of models that are not calibrated
    fewest = min(len(set(case.patients[case.labels == k])) for k in set(case.labels))
    rows = []
    for name in names:
        keys = name, f"{name}_lo", f"{name}_hi"
        value, lo, hi = np.array([[s[key] for key in keys] for s in summaries]).T
        spread = np.diff(np.percentile(value, [2.5, 97.5]))[0]
        holds = (lo <= true[name] + 1e-9) & (true[name] - 1e-9 <= hi)
        row = {
            "case": case.name,
            "metric": name,
            "coverage": float(holds.mean()),
            "width_ratio": float((hi - lo).mean() / spread),
            "cohorts": cohorts,
            "patients": len(set(case.patients)),
            "fewest_of_a_class": fewest,
        }
        rows.append(row)
    return rows


def folds(cohorts: int) -> list[dict]:
    """Rows of what folds add to a calibrated model's AUC and calibration error.

    100 patients, prevalence .2, AUC .85: five folds of one model against no folds, and
    five folds of as many scales.
    """
    labels = (np.arange(100) // FOLDS < 20 / FOLDS).astype(int)
    fold, ece = np.arange(100) % FOLDS, "calibration_error"
    case = Case("", labels, np.arange(100), two_centres(0.85))
    rng, differences = np.random.default_rng(3), []
    for _ in range(cohorts):
        p = posterior(case, scores(case, rng))
        one, same, scaled = (
            measure(labels, q, "01", case.threshold, case.patients, groups)
            for q, groups in ((p, None), (p, fold), (rescaled(p, fold), fold))
        )
        differences.append(
            [same["auc"] - one["auc"], same[ece] - one[ece], scaled["auc"] - one["auc"]]
        )
    names = (("one model", "auc"), ("one model", ece), ("five scales", "auc"))
    return [
        {
            "case": f"five folds of {models}, 100 patients, prevalence 0.2, AUC 0.85",
            "metric": metric,
            "bias": float(bias),
            "cohorts": cohorts,
        }
        for (models, metric), bias in zip(names, np.mean(differences, 0), strict=True)
    ]


def worst(rows: list[dict]) -> list[dict]:
    """The worst rows of each metric, where classes have FEW patients or more."""
    by_metric = {}
    for row in rows:
        if row.get("fewest_of_a_class", 0) >= FEW:
            by_metric.setdefault(row["metric"], []).append(row)
    table = []
    for metric, own in by_metric.items():
        least = min(own, key=lambda row: row["coverage"])
        row = {
            "metric": metric,
            "cases": len(own),
            "least coverage": least["coverage"],
            f"below {COVERAGE}": sum(r["coverage"] < COVERAGE for r in own),
            "widest": max(r["width_ratio"] for r in own),
            f"above {WIDTH}": sum(r["width_ratio"] > WIDTH for r in own),
            "case of the least coverage": least["case"],
        }
        table.append(row)
    return table


def rows(args: record.Arguments) -> Iterator[dict]:
    """Every metric of every case, and what folds add."""
    cohorts = QUICK if args.quick else COHORTS
    for case in cases():
        yield from covered(case, cohorts)
    yield from folds(cohorts)


def shown(rows: list[dict]) -> str:
    """The worst case of each metric, and what folds add."""
    bias = [row for row in rows if "bias" in row]
    return f"{record.table(worst(rows))}\n{record.table(bias)}"


if __name__ == "__main__":
    record.main(__doc__, rows, show=shown)
