"""From verdicts to what someone looks at: curves, heatmaps, a page, a short text."""

import json
import pathlib
import sys
from collections.abc import Sequence

from wsi_jax.config_io import flatten
from wsi_jax.data.cohort import Cohort
from wsi_jax.data.lint import patients_note
from wsi_jax.files import write_text
from wsi_jax.report import tables
from wsi_jax.report.page import Report, SlideResult, headline, write_page
from wsi_jax.run import report_charts, report_pictures
from wsi_jax.run.config import Experiment
from wsi_jax.run.inputs import Input
from wsi_jax.run.train import Predicted
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
    folder: pathlib.Path,
    config: Experiment,
    cohort: Cohort,
    source: Input,
    stages: Sequence[Stage],
    slides: Sequence[dict],
    verdicts: Sequence[Predicted],
    metrics: dict[str, int | float | str],
    cost: dict,
    progress,
) -> None:
    """Writes metrics.txt, roc.png, heatmaps/ and, last of all, report.html."""
    summary = {name.removeprefix("test."): v for name, v in metrics.items()}
    record = json.loads((folder / "config.json").read_text())
    write_text(folder / "metrics.txt", text(summary, len(verdicts)))
    there = [one for one in verdicts if one.row.path]
    shown = report_pictures.by_interest(there, cohort.classes)[: config.heatmaps]
    images = {}
    with progress("heatmaps", len(shown)) as advance:
        for one in shown:
            try:
                drawn = report_pictures.draw_pictures(
                    folder / "heatmaps", config, cohort, source, one
                )
            except SlideError as error:  # of a verdict, the picture is the least
                print(f"no heatmap: {error}", file=sys.stderr, flush=True)
                drawn = ()
            images[one.row.slide_id] = drawn
            advance(1)
    report = Report(
        title=f"{type(config.method).__name__} on {' and '.join(cohort.classes)}",
        subtitle=config.input.subtitle(config),
        metrics=headline(summary, names(summary)),
        n_slides=len(verdicts),
        n_patients=int(summary["n_patients"]),
        results=results(summary, getattr(config.method, "strategies_note", "")),
        cohort=tables.counts(
            [{"split": r.split, "site": r.site, "label": r.label} for r in cohort.rows],
            ("split", "site"),
            cohort.classes,
        ),
        cost=tables.cost(cost),
        charts=report_charts.draw_charts(
            folder, config, cohort, stages, verdicts, summary
        ),
        slides=tuple(
            SlideResult(
                slide_id=one.row.slide_id,
                label=one.row.label,
                predicted=cohort.classes[one.called],
                probability=float(one.probabilities[one.called]),
                images=images.get(one.row.slide_id, ()),
            )
            for one in verdicts
        ),
        refused={
            s["slide_id"]: s["reason"] for s in slides if s["status"] == "refused"
        },
        config={k: str(v) for k, v in flatten(record["config"]).items()},
        versions=record["versions"] | {k: str(v) for k, v in record["machine"].items()},
        commit=record["commit"],
        date=record["date"][:10],
        interval_notes=tables.notes(summary),
        limits=limits(config, cohort),
    )
    write_page(folder / "report.html", report)


def text(summary: dict[str, int | float | str], n: int) -> str:
    """The headline in a few lines of plain text."""
    lines = [f"test, {n} slides, 95 % intervals"]
    for name, shown in (names(summary) | pooled(summary)).items():
        lines.append(f"  {shown:<21} {tables.interval(summary, name)}")
    lines += [f"note: {note}" for note in tables.notes(summary)]
    return "\n".join(lines) + "\n"


def names(summary: dict[str, int | float | str]) -> dict[str, str]:
    """Headline metrics; of several folds' slides the AUC is that within folds."""
    return NAMES | ({"auc": "AUC within folds"} if pooled(summary) else {})


def pooled(summary: dict[str, int | float | str]) -> dict[str, str]:
    """The AUC of all folds' slides together, where there is one."""
    return POOLED if "auc_pooled" in summary else {}


def results(
    summary: dict[str, int | float | str], ways: str
) -> tuple[tables.Table, ...]:
    """By slide, patient, class, site, fold, and by the ways to come by a verdict."""
    recall = {"auc": "AUC", "recall": "recall", "precision": "precision", "f1": "F1"}
    found = [
        tables.levels(summary, names(summary) | pooled(summary) | ECE),
        tables.breakdown(summary, "per_class.", "Each class against the rest", recall),
    ]
    if any(name.startswith("site.") for name in summary):
        found.append(tables.breakdown(summary, "site.", "By site", NAMES))
    if "fold.0.n" in summary:
        wanted = {"threshold": "threshold"} if "fold.0.threshold" in summary else {}
        wanted |= {name: NAMES[name] for name in ("auc", "balanced_accuracy")}
        caption = FOLDS + WITHIN * bool(pooled(summary))
        found.append(tables.breakdown(summary, "fold.", caption, wanted))
    if any(name.startswith("inference.") for name in summary):
        found.append(tables.breakdown(summary, "inference.", ways, NAMES | ECE))
    return tuple(found)


def limits(config: Experiment, cohort: Cohort) -> tuple[str, ...]:
    """What a reader of this run must know besides."""
    said = [f"Patients: {note}." for note in [patients_note(cohort)] if note]
    if config.encoder and not (config.precomputed or config.encoder.weights):
        said.append(
            "The encoder is random: its features know colour and texture, not tissue. "
            "Weights trained on histology (--config.encoder.weights) do better."
        )
    return (*said, *config.data.limits())
