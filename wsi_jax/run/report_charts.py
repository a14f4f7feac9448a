"""What a run has learnt, as curves: verdicts, zooms, training, magnifications."""

from collections.abc import Sequence

import numpy as np

from wsi_jax.evals.bootstrap import REPLICATES, roc_band
from wsi_jax.evals.intervals import delong
from wsi_jax.evals.metrics import calibration, confidence, roc_points
from wsi_jax.evals.zoom_curve import zoom_curve
from wsi_jax.report import curves
from wsi_jax.report.figure import save_png, svg
from wsi_jax.report.page import Chart
from wsi_jax.training.log import read_metrics


def draw_charts(folder, config, cohort, stages, verdicts, summary) -> tuple[Chart, ...]:
    """ROC (also as roc.png), calibration, confusion, zooms, training, magnification."""
    labels = np.array([cohort.classes.index(v.row.label) for v in verdicts])
    p = np.stack([v.probabilities for v in verdicts])
    patients = np.array([v.row.patient_id for v in verdicts])
    ranked = [1] if len(cohort.classes) == 2 else range(len(cohort.classes))
    lines = [_roc(labels == c, p[:, c], patients, cohort, c, summary) for c in ranked]
    at, caption = None, "Test slides; band: pointwise 95 % of patients resampled."
    if "auc_pooled" in summary:
        caption += (
            " The curve is of the slides of all folds together, whose AUC is "
            f"{summary['auc_pooled']:.3f}; the AUC beside it counts pairs within folds."
        )
    elif len(lines) == 1:
        at = 1 - summary["specificity"], summary["sensitivity"]
    roc = curves.roc(lines, at)
    save_png(roc, folder / "roc.png")
    several = len(cohort.classes) > 2
    claim = "largest probability" if several else f"probability of {cohort.classes[1]}"
    matrix = np.array(
        [
            [int(summary[f"confusion.{label}.{said}"]) for said in cohort.classes]
            for label in cohort.classes
        ]
    )
    drawn = [
        Chart(
            title="ROC",
            svg=svg(roc),
            alt="; ".join(f"{c.name}: AUC {c.auc:.3f}" for c in lines),
            caption=caption,
        ),
        Chart(
            title="Calibration",
            svg=svg(curves.calibration(*calibration(*confidence(labels, p)), claim)),
            alt=f"calibration error {summary['calibration_error']:.3f}",
            caption=(
                f"Expected calibration error {summary['calibration_error']:.3f}, over "
                "ten bins of equal width. Numbers: slides in the bin."
            ),
        ),
        Chart(
            title="Confusion",
            svg=svg(curves.confusion(matrix, cohort.classes)),
            alt=f"confusion matrix {matrix.tolist()} of {', '.join(cohort.classes)}",
            caption="Rows: labels; columns: verdicts.",
        ),
    ]
    drawn += zooming(config, cohort, verdicts, labels, patients, ranked)
    for stage in stages:
        *_, log = sorted(folder.glob(f"**/{stage.name}/metrics.jsonl"))  # last fold's
        if lines := read_metrics(log):
            drawn.append(training(lines, stage.name if len(stages) > 1 else ""))
            drawn += magnification(lines)
    return tuple(drawn)


def _roc(positive, scores, patients, cohort, c, summary) -> curves.Roc:
    name = cohort.classes[c]
    fpr, tpr = roc_points(positive, scores)
    grid = np.linspace(0, 1, 101)
    lo, hi = roc_band(positive, scores, patients, grid, seed=0, replicates=REPLICATES)
    prefix = f"per_class.{name}." if len(cohort.classes) > 2 else ""
    auc, auc_lo, auc_hi = (summary[f"{prefix}auc{end}"] for end in ("", "_lo", "_hi"))
    return curves.Roc(
        name=name, fpr=fpr, tpr=tpr, auc=auc, lo=auc_lo, hi=auc_hi, grid=grid,
        tpr_lo=lo, tpr_hi=hi,
    )  # fmt: skip


def zooming(config, cohort, verdicts, labels, patients, ranked) -> list[Chart]:
    """Of methods that tell what they would have said after every zoom."""
    traces = [one.trace or {} for one in verdicts]
    if not all("logits" in trace and "steps" in trace for trace in traces):
        return []
    shares, p = zoom_curve(
        [trace["logits"] for trace in traces],
        [int(trace["steps"]) for trace in traces],
        [len(one.attention) for one in verdicts],
    )
    folds = [one.fold for one in verdicts] if verdicts[0].fold is not None else None
    truth, auc = {}, {}
    for c, name in enumerate(cohort.classes):
        if (mine := p[labels == c, :, c]).size:
            truth[name] = mine.mean(0), *np.quantile(mine, (0.25, 0.75), 0)
    for c in ranked:
        at_share = [
            delong(labels == c, scores, patients, groups=folds)
            for scores in p[..., c].T
        ]
        auc[cohort.classes[c]] = tuple(np.array(at_share).T)
    first, last = (
        "; ".join(f"{name} {value[i]:.3f}" for name, (value, *_) in auc.items())
        for i in (0, -1)
    )
    first_fold = " Of several folds, by the first that tested a slide." * bool(
        config.data.folds
    )
    return [
        Chart(
            title="While zooming",
            svg=svg(curves.zooming(shares, truth, auc)),
            alt=f"AUC before the first zoom: {first}; after the last: {last}",
            caption=(
                "Verdicts on test slides as tile after tile is zoomed into. Left: mean "
                "over the slides of a class, band: the middle half of them. Right: "
                f"band: 95 % interval, by patients.{first_fold}"
            ),
            wide=True,
        )
    ]


def training(lines: Sequence[dict], stage: str) -> Chart:
    """Losses and scores of a stage, or of the only one, by its log."""
    known = {name for one in lines for name in one}
    validation = "val.loss" if "val.loss" in known else "val.log_loss"
    losses = {"training": "train.loss", "validation": validation}
    scores = {"validation AUC": "val.auc", "training accuracy": "train.accuracy"}
    pick = lambda wanted: {n: _line(lines, m) for n, m in wanted.items() if m in known}
    figure = curves.training(pick(losses), pick(scores))
    return Chart(
        title=f"Training: {stage}" if stage else "Training",
        svg=svg(figure),
        alt=f"loss and scores over {lines[-1]['step']} steps",
        caption="The step that validation liked best was kept.",
        wide=True,
    )


def magnification(lines: Sequence[dict]) -> list[Chart]:
    """Of methods with several magnifications to choose from."""
    prefix = "train.mass."
    known = {name for one in lines for name in one if name.startswith(prefix)}
    if len(known) < 2:
        return []
    mpps = sorted((name.removeprefix(prefix) for name in known), key=float)
    mass = {mpp: _line(lines, prefix + mpp) for mpp in mpps}
    last = ", ".join(
        f"{100 * values[-1]:.0f} % at {n} um/px" for n, (_, values) in mass.items()
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
    points = [(one["step"], one[name]) for one in lines if name in one]
    return tuple(np.array(points).T)
