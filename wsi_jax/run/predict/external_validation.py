"""External validation: a trained run on labelled slides that it has never met.

Predictions, metrics and a report as of a run's own test slides, at the threshold that
the run chose on its validation slides.
"""

import collections
import itertools
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from wsi_jax.config_fields import flatten, to_plain
from wsi_jax.data.cohort import Cohort, Row, read_manifest
from wsi_jax.data.splits import use_fold
from wsi_jax.files import AnyPath, content_id, is_remote, write_text
from wsi_jax.provenance import provenance
from wsi_jax.report import tables
from wsi_jax.report.page import Chart, Report, SlideResult, headline, write_page
from wsi_jax.run.checks import MANIFEST
from wsi_jax.run.cohort_predictions import Predicted
from wsi_jax.run.config import with_mpp
from wsi_jax.run.evaluate import measure, write_predictions
from wsi_jax.run.model_card import Card
from wsi_jax.run.predict.predict_slides import Options, predict_slides
from wsi_jax.run.predict.slide_predictor import SlidePredictor
from wsi_jax.run.run_folder import RunError, write_csv, write_json
from wsi_jax.run.write_report import write_report
from wsi_jax.run.write_report.charts import draw_calibration, draw_confusion, draw_roc
from wsi_jax.run.write_report.pictures import by_interest

PICTURES = 12  # slides whose heatmap is on the page


def validate_run(
    predictor: SlidePredictor,
    runs: Sequence[AnyPath],
    out: AnyPath,
    manifest: str,
    mpp: float | None,
    options: Options,
) -> AnyPath:
    """Predicts the slides of a manifest, where not done yet, and measures.

    Args:
        predictor: the run, or several that predict together, opened.
        runs: their folders.
        out: folder of the output: predictions.csv and metrics.json as a run has them,
            refused.csv, report.html, and slides/ with a heatmap of each slide.
        manifest: CSV with labels.
        mpp: um/px of slides for which neither manifest nor file says it.
        options: how slides are predicted.

    Returns:
        The path of the report.

    Raises:
        ValueError: a label that is no class of the run, or no slide has a prediction.
    """
    cohort = with_mpp(read_manifest(manifest, predictor.classes), mpp)
    learnt = [row for run in runs for row in training_rows(run)]
    refused = refuse_learnt(cohort.rows, learnt)
    rows = [row for row in cohort.rows if row.slide_id not in refused]
    lines = (
        predict_slides(predictor, runs, out / "slides", rows, options) if rows else []
    )
    refused |= {
        one["slide_id"]: one["reason"] for one in lines if not one["prediction"]
    }
    write_refused(out / "refused.csv", cohort, refused)
    predictions = list(predicted(cohort, lines))
    if not predictions:
        raise RunError(
            f"none of {len(cohort.rows)} slides has a prediction; "
            f"{out / 'refused.csv'} has the reasons"
        )
    p = np.stack([one.probabilities for one in predictions])
    sites = [one.row.site for one in predictions]
    card = getattr(predictor, "members", [predictor])[0].card
    summary = measure(cohort, predictions, p, predictor.threshold, sites)
    write_predictions(out / "predictions.csv", predictions, cohort)
    metrics = {f"test.{name}": value for name, value in summary.items()}
    write_json(out / "metrics.json", metrics)
    title = f"{pathlib.Path(manifest).name} by {', '.join(map(str, runs))}"
    text = write_report.text(summary, len(predictions), cohort.classes)
    text = text.replace("test", title, 1)
    if refused:
        text += f"refused: {len(refused)} of {len(cohort.rows)}, see refused.csv\n"
    write_text(out / "metrics.txt", text)
    page = report(card, title, cohort, predictions, summary, refused, out)
    write_page(out / "report.html", page)
    return out / "report.html"


def default_folder(run: AnyPath, manifest: str) -> AnyPath:
    """RUN/external/NAME, for the first manifest of that name.

    Raises:
        RunError: the folder has the predictions of another manifest.
    """
    out, path = (
        run / "external" / pathlib.Path(manifest).stem,
        os.path.abspath(manifest),
    )
    owner = out / "manifest.txt"
    if owner.is_file() and (other := owner.read_text("utf-8").strip()) != path:
        raise RunError(f"{out} is of {other}; for {manifest} add --out FOLDER")
    if os.path.isfile(path):
        out.mkdir(parents=True, exist_ok=True)
        write_text(owner, f"{path}\n")
    return out


def training_rows(run: AnyPath) -> tuple[Row, ...]:
    """The slides that a run, or one fold of it, has learnt from or validated on."""
    run = run if is_remote(run) else run.resolve()
    fold = run.name.removeprefix("fold_")
    of_fold = fold != run.name and fold.isdigit()
    path = (run.parent if of_fold else run) / MANIFEST
    if not path.is_file():
        print(
            f"note: no {path}: whether the run has learnt from these slides is not "
            "known",
            file=sys.stderr,
            flush=True,
        )
        return ()
    cohort = read_manifest(path)
    if of_fold:
        cohort = use_fold(cohort, int(fold))
    return tuple(row for row in cohort.rows if row.split in ("train", "val"))


def refuse_learnt(rows: Sequence[Row], learnt: Sequence[Row]) -> dict[str, str]:
    """Why slides that a run has learnt from are refused, by slide; printed, too.

    Patients of a name that the run has learnt from are noted: hospitals may use the
    same ones.
    """
    alike, refused = collections.defaultdict(list), {}
    for row in learnt:
        for key in _keys(row):
            alike[key].append(row.path)
    for row in rows:
        others = itertools.chain(*(alike[key] for key in _keys(row)))
        if any(_same_file(row.path, other) for other in others):
            reason = f"{row.slide_id}: the run has learnt from this slide"
            print(f"refused: {reason}", file=sys.stderr, flush=True)
            refused[row.slide_id] = reason
    others = {row.patient_id for row in rows if row.slide_id not in refused}
    if names := sorted(others & {row.patient_id for row in learnt}):
        print(
            f"note: {len(names)} patients have the id of one that the run has learnt "
            f"from ({', '.join(names[:5])}{', ...' * (len(names) > 5)}): if they are "
            "the same people, leave their slides out",
            file=sys.stderr,
            flush=True,
        )
    return refused


def _keys(row: Row) -> tuple[str | int, ...]:
    """What rows of one slide share: the name, or the size of the file."""
    size = [os.path.getsize(row.path)] if os.path.isfile(row.path) else []
    return row.slide_id.casefold(), *size


def _same_file(path: str, other: str) -> bool:
    """Whether two files may be one; a file that is gone may be any."""
    if not (os.path.isfile(path) and os.path.isfile(other)):
        return True
    return content_id(path) == content_id(other)


def predicted(
    cohort: Cohort, lines: Sequence[Mapping[str, str]]
) -> Iterator[Predicted]:
    """The predictions that lines of a table of `predict_slides` hold."""
    rows = {row.slide_id: row for row in cohort.rows}
    for line in lines:
        if line["prediction"]:
            yield Predicted(
                row=rows[line["slide_id"]],
                probabilities=np.array([float(line[f"p_{c}"]) for c in cohort.classes]),
                called=cohort.classes.index(line["prediction"]),
                attention=np.empty(0),
                flops=0,
            )


def write_refused(path: AnyPath, cohort: Cohort, refused: Mapping[str, str]) -> None:
    """One line for each slide without a prediction; no file where there is none."""
    lines = [
        {"slide_id": row.slide_id, "label": row.label, "reason": refused[row.slide_id]}
        for row in cohort.rows
        if row.slide_id in refused
    ]
    path.unlink(missing_ok=True)
    if lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_csv(path, lines)


def report(
    card: Card,
    title: str,
    cohort: Cohort,
    predictions: Sequence[Predicted],
    summary: Mapping[str, int | float | str],
    refused: Mapping[str, str],
    out: AnyPath,
) -> Report:
    """The page; arguments as they are in `validate_run`."""
    made, classes = provenance(), cohort.classes
    shown = {one.row.slide_id for one in by_interest(predictions, classes)[:PICTURES]}
    cut = f", at its threshold {summary['threshold']:.3f}" * ("threshold" in summary)
    return Report(
        title=title,
        subtitle=f"External validation of a trained {type(card.method).__name__}{cut}",
        metrics=headline(summary, write_report.names(summary)),
        n_slides=len(predictions),
        n_patients=int(summary["n_patients"]),
        results=write_report.results(summary, ""),
        cohort=tables.counts(
            [{"site": row.site, "label": row.label} for row in cohort.rows],
            ("site",),
            classes,
        ),
        cost=tables.Table(caption="Cost: not measured", header=(), rows=()),
        charts=charts(cohort, predictions, summary, out),
        slides=tuple(
            SlideResult(
                slide_id=one.row.slide_id,
                label=one.row.label,
                predicted=classes[one.called],
                probability=float(one.probabilities[one.called]),
                images=(out / f"slides/{one.row.slide_id}.png",)
                if one.row.slide_id in shown
                else (),
            )
            for one in predictions
        ),
        refused=refused,
        config={name: str(value) for name, value in flatten(to_plain(card)).items()},
        versions=made["versions"] | {k: str(v) for k, v in made["machine"].items()},
        commit=made["commit"],
        date=made["date"][:10],
        notes=write_report.notes(summary, cohort.classes),
        limitations=(
            "The threshold is that of the run: nothing was chosen on these slides.",
        ),
    )


def charts(
    cohort: Cohort,
    predictions: Sequence[Predicted],
    summary: Mapping[str, int | float | str],
    out: AnyPath,
) -> tuple[Chart, ...]:
    """ROC where every class has a slide, calibration and confusion."""
    classes = cohort.classes
    labels = np.array([classes.index(one.row.label) for one in predictions])
    p = np.stack([one.probabilities for one in predictions])
    patients = np.array([one.row.patient_id for one in predictions])
    roc = []
    if len(np.unique(labels)) == len(classes):
        roc = [draw_roc(out, classes, labels, p, patients, summary)]
    return (
        *roc,
        draw_calibration(classes, labels, p, summary),
        draw_confusion(classes, summary),
    )
