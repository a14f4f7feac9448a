"""The report of a run: heatmaps, the page, and the headline as a short text."""

import json
import sys
from collections.abc import Sequence

from wsi_jax.config_fields import flatten
from wsi_jax.data.cohort import Cohort
from wsi_jax.data.lint import patients_note
from wsi_jax.data.public_cohorts import pretraining_note
from wsi_jax.files import AnyPath, write_text
from wsi_jax.report import tables
from wsi_jax.report.page import Report, SlideResult, headline, write_page
from wsi_jax.run.cohort_predictions import Predicted
from wsi_jax.run.config import Experiment
from wsi_jax.run.inputs import Input
from wsi_jax.run.write_report.charts import draw_charts
from wsi_jax.run.write_report.pictures import by_interest, draw_pictures
from wsi_jax.slides.slide import SlideError
from wsi_jax.types import Stage

NAMES = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "f1": "F1"}
ECE = {"calibration_error": "calibration error"}
POOLED = {"auc_pooled": "AUC, all folds pooled"}
FOLDS = (
    "By fold. Each decides at its own threshold, chosen on its validation slides; "
    "probabilities are as its model gave them"
)
WITHIN = (
    "; AUC elsewhere counts pairs of slides of one fold, as models of different folds "
    "have no common scale"
)


def write(
    folder: AnyPath,
    config: Experiment,
    cohort: Cohort,
    source: Input,
    stages: Sequence[Stage],
    *,
    slides: Sequence[dict],
    predictions: Sequence[Predicted],
    metrics: dict[str, int | float | str],
    cost: dict,
    progress,
) -> None:
    """Writes metrics.txt, roc.png, heatmaps/ and, last of all, report.html.

    Args:
        folder, config, cohort, source, stages: the run, and what it read.
        slides: rows of slides.csv.
        predictions, metrics: of the test slides, as in metrics.json.
        cost: account of the run's meter.
        progress: (label, total) -> a progress bar.
    """
    summary = {name.removeprefix("test."): v for name, v in metrics.items()}
    record = json.loads((folder / "config.json").read_text())
    lines = text(summary, len(predictions), cohort.classes) + _refusals(slides)
    write_text(folder / "metrics.txt", lines)
    images = draw_heatmaps(folder, config, cohort, source, predictions, progress)
    report = Report(
        title=f"{type(config.method).__name__} on {' and '.join(cohort.classes)}",
        subtitle=config.input.subtitle(config),
        metrics=headline(summary, names(summary)),
        n_slides=len(predictions),
        n_patients=int(summary["n_patients"]),
        results=results(summary, getattr(config.method, "strategies_note", "")),
        cohort=tables.counts(
            [{"split": r.split, "site": r.site, "label": r.label} for r in cohort.rows],
            ("split", "site"),
            cohort.classes,
        ),
        cost=tables.cost(cost),
        charts=draw_charts(folder, config, cohort, stages, predictions, summary),
        slides=tuple(
            SlideResult(
                slide_id=one.row.slide_id,
                label=one.row.label,
                predicted=cohort.classes[one.called],
                probability=float(one.probabilities[one.called]),
                images=images.get(one.row.slide_id, ()),
            )
            for one in predictions
        ),
        refused=_reasons(slides),
        config={k: str(v) for k, v in flatten(record["config"]).items()},
        versions=record["versions"] | {k: str(v) for k, v in record["machine"].items()},
        commit=record["commit"],
        date=record["date"][:10],
        notes=notes(summary, cohort.classes),
        limitations=limitations(config, cohort),
    )
    write_page(folder / "report.html", report)


def _refusals(slides: Sequence[dict]) -> str:
    """How many slides were refused; "" for none."""
    n = len(_reasons(slides))
    return f"refused: {n} of {len(slides)} slides, see slides.csv\n" if n else ""


def _reasons(slides: Sequence[dict]) -> dict[str, str]:
    """Why slides were refused, by slide."""
    return {s["slide_id"]: s["reason"] for s in slides if s["status"] == "refused"}


def draw_heatmaps(
    folder: AnyPath, config, cohort: Cohort, source, predictions, progress
) -> dict[str, tuple[AnyPath, ...]]:
    """Pictures of the slides most worth a look, by slide; none of an unreadable one."""
    readable = [one for one in predictions if one.row.path]
    chosen = by_interest(readable, cohort.classes)[: config.heatmaps]
    images = {}
    with progress("heatmaps", len(chosen)) as advance:
        for one in chosen:
            try:
                paths = draw_pictures(folder / "heatmaps", config, cohort, source, one)
                images[one.row.slide_id] = paths
            except SlideError as error:  # a report without a picture is still one
                print(f"no heatmap: {error}", file=sys.stderr, flush=True)
            advance(1)
    return images


def text(summary: dict[str, int | float | str], n: int, classes: Sequence[str]) -> str:
    """The headline in a few lines of plain text."""
    lines = [f"test, {n} slides, 95 % intervals"]
    for key, name in (names(summary) | pooled(summary)).items():
        lines.append(f"  {name:<21} {tables.interval(summary, key)}")
    lines += [f"note: {note}" for note in notes(summary, classes)]
    return "\n".join(lines) + "\n"


def notes(
    summary: dict[str, int | float | str], classes: Sequence[str]
) -> tuple[str, ...]:
    """The threshold of two classes, where all slides have one; and few patients."""
    threshold, rates = summary.get("threshold"), ("specificity", "sensitivity")
    chosen = (
        (
            f"predicted {classes[-1]} from a probability of {threshold:.3f}, chosen on "
            "validation slides"
        )
        if threshold is not None
        else ""
    )
    same = [
        f"every slide is predicted {name}: the threshold does not separate them"
        for name, rate in zip(classes, rates, strict=False)
        if chosen and summary.get(rate) == 1 and sum(summary[r] for r in rates) == 1
    ]
    return tuple(filter(None, [chosen, *same, *tables.interval_notes(summary)]))


def names(summary: dict[str, int | float | str]) -> dict[str, str]:
    """Headline metrics; of several folds' slides the AUC is that within folds."""
    return NAMES | ({"auc": "AUC within folds"} if pooled(summary) else {})


def pooled(summary: dict[str, int | float | str]) -> dict[str, str]:
    """The AUC of all folds' slides together, where there is one."""
    return POOLED if "auc_pooled" in summary else {}


def results(
    summary: dict[str, int | float | str], strategies: str
) -> tuple[tables.Table, ...]:
    """Metrics by slide, patient, class, site, fold and zoom strategy.

    Args:
        summary: of the test slides.
        strategies: caption of the strategies' table.
    """
    recall = {"auc": "AUC", "recall": "recall", "precision": "precision", "f1": "F1"}
    parts = [
        tables.levels(summary, names(summary) | pooled(summary) | ECE),
        tables.breakdown(summary, "per_class.", "Each class against the rest", recall),
    ]
    if any(name.startswith("site.") for name in summary):
        parts.append(tables.breakdown(summary, "site.", "By site", NAMES))
    if "fold.0.n" in summary:
        wanted = {"threshold": "threshold"} if "fold.0.threshold" in summary else {}
        wanted |= {name: NAMES[name] for name in ("auc", "balanced_accuracy")}
        caption = FOLDS + WITHIN * bool(pooled(summary))
        parts.append(tables.breakdown(summary, "fold.", caption, wanted))
    if any(name.startswith("inference.") for name in summary):
        columns = NAMES | ECE
        parts.append(tables.breakdown(summary, "inference.", strategies, columns))
    return tuple(parts)


def limitations(config: Experiment, cohort: Cohort) -> tuple[str, ...]:
    """What a reader of this run must know besides."""
    sentences = [f"Patients: {note}." for note in [patients_note(cohort)] if note]
    if config.encoder and not (config.precomputed or config.encoder.weights):
        sentences.append(
            "The encoder is random: its features tell colour and texture, not tissue. "
            "Weights trained on histology (--config.encoder.weights) do better."
        )
    if note := pretraining_note(cohort, config.pretrained_on()):
        sentences.append(f"Pre-training: {note}.")
    return (*sentences, *config.data.limitations())
