"""From predictions of the test slides to metrics and tables."""

from collections.abc import Sequence

import numpy as np

from wsi_jax.data.cohort import Cohort
from wsi_jax.evals.metrics import predict as predicted_classes
from wsi_jax.evals.metrics import slide_metrics
from wsi_jax.evals.summary import summarise_split
from wsi_jax.files import AnyPath
from wsi_jax.run.cohort_predictions import Predicted, Predictions
from wsi_jax.run.config import Experiment
from wsi_jax.run.run_folder import write_csv
from wsi_jax.run.write_report.write_report import ECE, NAMES


def evaluate(
    config: Experiment, cohort: Cohort, tested: Sequence[Predictions]
) -> tuple[dict[str, int | float | str], list[Predicted]]:
    """Metrics of the test slides, and one prediction of each.

    Where several folds tested the same slides, the mean probability decides, at the
    mean threshold. Where each tested slides of its own, each decides at its own
    threshold, which its validation slides chose, and AUC counts pairs of slides of one
    fold: models of different folds have no common scale. Probabilities are as the
    models gave them.

    Args:
        config: the run's.
        cohort: all slides.
        tested: predictions of each fold; of the one training where there are no folds.
    """
    by_slide: dict[str, list[Predicted]] = {}
    for fold, one in enumerate(tested):
        for prediction in one.slides:
            name = prediction.row.slide_id
            by_slide.setdefault(name, []).append(prediction._replace(fold=fold))
    apart = len(tested) > 1 and max(map(len, by_slide.values())) == 1
    means = [mean_prediction(several) for several in by_slide.values()]
    if not apart:
        means = [one._replace(fold=None) for one in means]
    folds = np.array([one.fold for one in means]) if apart else None
    threshold = slide_thresholds([one.threshold for one in tested], folds)
    p = np.stack([one.probabilities for one in means])
    labels = predicted_classes(p, threshold).tolist()
    predictions = [
        one._replace(called=label) for one, label in zip(means, labels, strict=True)
    ]
    sites = [one.row.site for one in predictions]
    metrics = measure(cohort, predictions, p, threshold, sites)
    if len(tested) > 1:
        for fold, one in enumerate(tested):
            metrics |= fold_metrics(cohort, f"fold.{fold}.", one)
    metrics |= strategy_metrics(config, cohort, predictions, tested, metrics)
    return {f"test.{name}": value for name, value in metrics.items()}, predictions


def mean_prediction(several: Sequence[Predicted]) -> Predicted:
    """The mean of predictions of one slide by several models."""
    mean = lambda values: np.mean(list(values), 0)
    return several[0]._replace(
        probabilities=mean(one.probabilities for one in several),
        attention=mean(one.attention for one in several),
        others={
            name: mean(one.others[name] for one in several)
            for name in several[0].others
        },
    )


def slide_thresholds(
    thresholds: Sequence[float | None], folds: np.ndarray | None
) -> float | np.ndarray | None:
    """The threshold of each slide [n], by its fold; or the mean of all folds'."""
    if thresholds[0] is None:
        return None
    return float(np.mean(thresholds)) if folds is None else np.array(thresholds)[folds]


def measure(
    cohort: Cohort,
    predictions: Sequence[Predicted],
    p: np.ndarray,
    threshold: float | np.ndarray | None,
    sites: Sequence[str] | None = None,
) -> dict[str, int | float | str]:
    """Metrics of probabilities [n c] of the test slides, with their intervals."""
    apart = predictions[0].fold is not None
    return summarise_split(
        cohort._replace(rows=tuple(one.row for one in predictions)).targets,
        p,
        cohort.classes,
        patients=[one.row.patient_id for one in predictions],
        sites=sites,
        threshold=threshold,
        groups=[one.fold for one in predictions] if apart else None,
    )


def fold_metrics(
    cohort: Cohort, prefix: str, tested: Predictions
) -> dict[str, int | float]:
    """Metrics of the model of one fold on the slides that it tests."""
    rows = tuple(one.row for one in tested.slides)
    p = np.stack([one.probabilities for one in tested.slides])
    metrics = slide_metrics(cohort._replace(rows=rows).targets, p, tested.threshold)
    values = {"n": len(rows)}
    if tested.threshold is not None:
        values["threshold"] = tested.threshold
    values |= {name: float(metrics[name]) for name in ("auc", "balanced_accuracy")}
    return {prefix + name: value for name, value in values.items()}


def strategy_metrics(
    config: Experiment,
    cohort: Cohort,
    predictions: list[Predicted],
    tested: Sequence[Predictions],
    metrics: dict[str, int | float | str],
) -> dict[str, int | float]:
    """Metrics of each strategy of inference, and at which mpp attention lies."""
    if not predictions[0].others:
        return {}
    names = [f"{name}{end}" for name in NAMES for end in ("", "_lo", "_hi")]
    names += ECE
    by, thresholds = {config.method.strategy: metrics}, {}
    apart = predictions[0].fold is not None
    folds = np.array([one.fold for one in predictions]) if apart else None
    for name in predictions[0].others:
        own = [one.others[name] for one in tested]
        p = np.stack([one.others[name] for one in predictions])
        by[name] = measure(cohort, predictions, p, slide_thresholds(own, folds))
        if own[0] is not None and len(own) > 1:
            thresholds |= {
                f"inference.{name}.fold.{k}.threshold": t for k, t in enumerate(own)
            }
    values = {
        f"inference.{strategy}.{name}": summary[name]
        for strategy, summary in by.items()
        for name in ("n", "threshold", *names)
        if name in summary
    }
    values |= thresholds
    if "maps" not in (predictions[0].trace or {}):
        return values
    mass = np.mean([one.trace["maps"].sum((1, 2)) for one in predictions], 0)
    pairs = zip(config.method.mpps, mass.tolist(), strict=True)
    return values | {f"mass.{mpp:g}": share for mpp, share in pairs}


def write_predictions(
    path: AnyPath, predictions: Sequence[Predicted], cohort: Cohort
) -> None:
    """One line a test slide: who it is, its prediction, each class's probability.

    The fold stands beside it where each tests slides of its own. Probabilities by the
    method's other strategies stand behind; all digits of float32 are kept, so that near
    1, too, the order of slides is that of the metrics.
    """
    lines = []
    for one in predictions:
        line = {
            name: getattr(one.row, name) for name in ("slide_id", "patient_id", "site")
        }
        if one.fold is not None:
            line["fold"] = one.fold
        line |= {"label": one.row.label, "prediction": cohort.classes[one.called]}
        sets = {"": one.probabilities}
        sets |= {f"{name}.": p for name, p in one.others.items()}
        for prefix, p in sets.items():
            pairs = zip(cohort.classes, p, strict=True)
            line |= {f"{prefix}p_{name}": f"{value:.9g}" for name, value in pairs}
        lines.append(line)
    write_csv(path, lines)
