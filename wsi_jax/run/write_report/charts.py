"""The charts of a report: ROC, calibration, confusion, zooming, training."""

from collections.abc import Sequence

import numpy as np

from wsi_jax.data.cohort import Cohort
from wsi_jax.evals.bootstrap import REPLICATES, roc_band
from wsi_jax.evals.intervals import delong
from wsi_jax.evals.metrics import calibration, confidence, ranked_classes, roc_points
from wsi_jax.evals.zoom_curve import zoom_curve
from wsi_jax.files import AnyPath
from wsi_jax.report import curves
from wsi_jax.report.figure import save_png, svg
from wsi_jax.report.page import Chart
from wsi_jax.run.cohort_predictions import Predicted
from wsi_jax.training.log import read_metrics
from wsi_jax.types import Stage


def draw_charts(
    folder: AnyPath,
    config,
    cohort: Cohort,
    stages: Sequence[Stage],
    predictions: Sequence[Predicted],
    summary: dict[str, int | float | str],
) -> tuple[Chart, ...]:
    """All charts of a run; the ROC curves are written to roc.png, too."""
    labels = np.array([cohort.classes.index(one.row.label) for one in predictions])
    p = np.stack([one.probabilities for one in predictions])
    patients = np.array([one.row.patient_id for one in predictions])
    charts = [
        draw_roc(folder, cohort.classes, labels, p, patients, summary),
        draw_calibration(cohort.classes, labels, p, summary),
        draw_confusion(cohort.classes, summary),
        *draw_zooming(config, cohort.classes, predictions, labels, patients),
    ]
    for stage in stages:
        file = f"{stage.name}/metrics.jsonl"
        logs = [*folder.glob(file), *sorted(folder.glob(f"fold_*/{file}"))]
        *_, log = logs  # of folds, the last
        if lines := read_metrics(log):
            charts.append(draw_training(lines, stage.name if len(stages) > 1 else ""))
            charts += draw_magnifications(lines)
    return tuple(charts)


def draw_roc(folder, classes, labels, p, patients, summary) -> Chart:
    """A curve for the positive class of two, for each class of more."""
    lines, grid = [], np.linspace(0, 1, 101)
    for c in ranked_classes(len(classes)):
        ranking = labels == c, p[:, c]
        band = roc_band(*ranking, patients, grid, seed=0, replicates=REPLICATES)
        key = f"per_class.{classes[c]}.auc" if len(classes) > 2 else "auc"
        fpr, tpr = roc_points(*ranking)
        lines.append(
            curves.Roc(
                name=classes[c],
                fpr=fpr,
                tpr=tpr,
                auc=summary[key],
                lo=summary[f"{key}_lo"],
                hi=summary[f"{key}_hi"],
                grid=grid,
                tpr_lo=band[0],
                tpr_hi=band[1],
            )
        )
    point, caption = None, "Test slides; band: pointwise 95 % of patients resampled."
    if "auc_pooled" in summary:
        caption += (
            " The curve is of the slides of all folds together, whose AUC is "
            f"{summary['auc_pooled']:.3f}; the AUC beside it counts pairs within folds."
        )
    elif len(lines) == 1:
        point = 1 - summary["specificity"], summary["sensitivity"]
    figure = curves.roc(lines, point)
    save_png(figure, folder / "roc.png")
    alt = "; ".join(f"{line.name}: AUC {line.auc:.3f}" for line in lines)
    return Chart(title="ROC", svg=svg(figure), alt=alt, caption=caption)


def draw_calibration(classes, labels, p, summary) -> Chart:
    claim = f"probability of {classes[1]}"
    if len(classes) > 2:
        claim = "largest probability"
    figure = curves.calibration(*calibration(*confidence(labels, p)), claim)
    error = f"{summary['calibration_error']:.3f}"
    return Chart(
        title="Calibration",
        svg=svg(figure),
        alt=f"calibration error {error}",
        caption=(
            f"Expected calibration error {error}, over ten bins of equal width. "
            "Numbers: slides in the bin."
        ),
    )


def draw_confusion(classes, summary) -> Chart:
    cell = lambda label, predicted: int(summary[f"confusion.{label}.{predicted}"])
    matrix = np.array([[cell(label, name) for name in classes] for label in classes])
    return Chart(
        title="Confusion",
        svg=svg(curves.confusion(matrix, classes)),
        alt=f"confusion matrix {matrix.tolist()} of {', '.join(classes)}",
        caption="Rows: labels; columns: predictions.",
    )


def draw_zooming(config, classes, predictions, labels, patients) -> list[Chart]:
    """Of methods whose trace has the logits after every zoom."""
    traces = [one.trace or {} for one in predictions]
    if not all("logits" in trace and "steps" in trace for trace in traces):
        return []
    shares, p = zoom_curve(
        [trace["logits"] for trace in traces],
        [int(trace["steps"]) for trace in traces],
        [len(one.attention) for one in predictions],
    )
    folds = [one.fold for one in predictions]
    folds = None if folds[0] is None else folds
    truth, auc = {}, {}
    for c, name in enumerate(classes):
        if (own := p[labels == c, :, c]).size:
            truth[name] = own.mean(0), *np.quantile(own, (0.25, 0.75), 0)
    for c in ranked_classes(len(classes)):
        area = lambda scores, c=c: delong(labels == c, scores, patients, groups=folds)
        auc[classes[c]] = tuple(np.array([area(scores) for scores in p[..., c].T]).T)
    first, last = (
        "; ".join(f"{name} {value[i]:.3f}" for name, (value, *_) in auc.items())
        for i in (0, -1)
    )
    first_fold = " Of several folds, by the first that tested a slide." * bool(
        config.data.folds
    )
    caption = (
        "Predictions on test slides as tile after tile is zoomed into. Left: mean over "
        "the slides of a class, band: the middle half of them. Right: band: 95 % "
        f"interval, by patients.{first_fold}"
    )
    return [
        Chart(
            title="While zooming",
            svg=svg(curves.zooming(shares, truth, auc)),
            alt=f"AUC before the first zoom: {first}; after the last: {last}",
            caption=caption,
            wide=True,
        )
    ]


def draw_training(lines: Sequence[dict], stage: str) -> Chart:
    """Losses and scores from a stage's log; `stage` is "" where there is only one."""
    logged = {name for line in lines for name in line}
    validation = "val.loss" if "val.loss" in logged else "val.log_loss"
    losses = {"training": "train.loss", "validation": validation}
    scores = {"validation AUC": "val.auc", "training accuracy": "train.accuracy"}
    pick = lambda names: {n: _line(lines, m) for n, m in names.items() if m in logged}
    return Chart(
        title=f"Training: {stage}" if stage else "Training",
        svg=svg(curves.training(pick(losses), pick(scores))),
        alt=f"loss and scores over {lines[-1]['step']} steps",
        caption="The step with the best validation score was kept.",
        wide=True,
    )


def draw_magnifications(lines: Sequence[dict]) -> list[Chart]:
    """Of methods with several magnifications to choose from."""
    prefix = "train.mass."
    logged = {name for line in lines for name in line if name.startswith(prefix)}
    if len(logged) < 2:
        return []
    mpps = sorted((name.removeprefix(prefix) for name in logged), key=float)
    mass = {mpp: _line(lines, prefix + mpp) for mpp in mpps}
    last = ", ".join(
        f"{100 * values[-1]:.0f} % at {mpp} um/px" for mpp, (_, values) in mass.items()
    )
    return [
        Chart(
            title="Magnification",
            svg=svg(curves.magnifications(mass)),
            alt=f"share of attention at the last step: {last}",
            caption=f"Share of the attention on training slides; in the end {last}.",
            wide=True,
        )
    ]


def _line(lines: Sequence[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a metric of the log."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    return tuple(np.array(points).T)
