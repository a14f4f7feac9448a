"""From verdicts to what someone looks at: curves, heatmaps, a page, a short text."""

import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from experiments.experiment import Experiment
from experiments.sources import Source
from experiments.training import Predicted
from wsi_jax.configs import flatten
from wsi_jax.data.cohort import Cohort
from wsi_jax.evals.bootstrap import roc_band
from wsi_jax.evals.calibration import calibration, confidence
from wsi_jax.evals.intervals import delong
from wsi_jax.evals.ranking import roc_points
from wsi_jax.evals.summary import REPLICATES
from wsi_jax.evals.zooming import along
from wsi_jax.report import curves, tables
from wsi_jax.report.figure import save_png, svg
from wsi_jax.report.heatmap import heatmap
from wsi_jax.report.looks import distinct, looks, top_crops
from wsi_jax.report.page import Report, headline, write_page
from wsi_jax.report.parts import Drawing, Verdict
from wsi_jax.report.tiles import top_tiles
from wsi_jax.report.zooms import top_zooms, zooms
from wsi_jax.slides.annotations import AnnotationError
from wsi_jax.slides.presets import Preset
from wsi_jax.slides.regions import read_annotations
from wsi_jax.slides.slide import SlideError, open_slide
from wsi_jax.train.log import read_metrics
from wsi_jax.types import Stage

OVERVIEW_PX = 1000  # longer side of a heatmap's overview
TOP_TILES = 8
NAMES = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "f1": "F1"}
ECE = {"calibration_error": "calibration error"}


def write(
    folder: pathlib.Path,
    config: Experiment,
    cohort: Cohort,
    source: Source,
    stages: Sequence[Stage],
    slides: Sequence[dict],
    verdicts: Sequence[Predicted],
    metrics: dict[str, float],
    cost: dict,
    progress,
) -> None:
    """Writes metrics.txt, roc.png, heatmaps/ and, last of all, report.html."""
    summary = {name.removeprefix("test."): v for name, v in metrics.items()}
    record = json.loads((folder / "config.json").read_text())
    (folder / "metrics.txt").write_text(text(summary, len(verdicts)))
    there = [one for one in verdicts if one.row.path]
    shown = interesting(there, cohort)[: config.heatmaps]
    pictures = {}
    with progress("heatmaps", len(shown)) as advance:
        for one in shown:
            try:
                drawn = draw(folder / "heatmaps", config, cohort, source, one)
            except SlideError as error:  # of a verdict, the picture is the least
                print(f"no heatmap: {error}", file=sys.stderr, flush=True)
                drawn = ()
            pictures[one.row.slide_id] = drawn
            advance(1)
    report = Report(
        title=f"{type(config.method).__name__} on {' and '.join(cohort.classes)}",
        subtitle=subtitle(config),
        metrics=headline(summary, NAMES),
        n_slides=len(verdicts),
        n_patients=int(summary["n_patients"]),
        results=results(summary, getattr(config.method, "ways", "")),
        cohort=tables.counts(
            [{"split": r.split, "site": r.site, "label": r.label} for r in cohort.rows],
            ("split", "site"),
            cohort.classes,
        ),
        cost=tables.cost(cost),
        drawings=drawings(folder, config, cohort, stages, verdicts, summary),
        verdicts=tuple(
            Verdict(
                slide_id=one.row.slide_id,
                label=one.row.label,
                predicted=cohort.classes[one.called],
                probability=float(one.probabilities[one.called]),
                images=pictures.get(one.row.slide_id, ()),
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
        limits=limits(config),
    )
    write_page(folder / "report.html", report)


def subtitle(config: Experiment) -> str:
    """What was learnt from."""
    if config.precomputed:
        return "Precomputed features, trained on slide labels."
    if config.looks:
        return config.method.said(config.grid.mpp)
    if config.streams:
        return (
            f"Whole slides at {config.grid.mpp:g} um/px, {config.trunk.name} trained "
            "end to end on slide labels."
        )
    tiles = f"Tiles of {config.grid.size_px} px at {config.grid.mpp:g} um/px"
    if config.zooms:
        fine, k = config.mpps[0], config.method.children
        tiles += f" and the {k} x {k} at {fine:g} um/px that fill each"
    return f"{tiles}, {config.encoder.name} features, trained on slide labels."


def text(summary: dict[str, float], n: int) -> str:
    """The headline in a few lines of plain text."""
    lines = [f"test, {n} slides, 95 % intervals"]
    lines += [f"  {NAMES[m]:<18} {tables.interval(summary, m)}" for m in NAMES]
    return "\n".join(lines) + "\n"


def interesting(verdicts: Sequence[Predicted], cohort: Cohort) -> list[Predicted]:
    """Wrong verdicts first, then the surest of each class in turn."""
    wrong = [v for v in verdicts if cohort.classes[v.called] != v.row.label]
    right = [v for v in verdicts if cohort.classes[v.called] == v.row.label]
    sure = lambda v: -v.probabilities[v.called]
    turns = []
    for c in reversed(range(len(cohort.classes))):
        mine = sorted((v for v in right if v.called == c), key=sure)
        turns += [(place, -c, v) for place, v in enumerate(mine)]
    return sorted(wrong, key=sure) + [v for *_, v in sorted(turns, key=lambda t: t[:2])]


def draw(folder, config, cohort, source, one: Predicted) -> tuple[pathlib.Path, ...]:
    """What one slide's verdict rests on: attention, and what had most of it."""
    folder.mkdir(exist_ok=True)
    called = cohort.classes[one.called]
    paths = (
        folder / f"{one.row.slide_id}.png",
        folder / f"{one.row.slide_id}_top.png",
    )
    try:
        outlined = one.row.annotation_path
        lesions = read_annotations(outlined) if outlined else ()
    except AnnotationError:  # slides.csv says so
        lesions = ()
    title = f"{one.row.slide_id}: {one.row.label}, called {called}"
    outlines = [polygon.vertices for polygon in lesions]
    with open_slide(one.row.path, one.row.mpp) as slide:
        if one.trace and "maps" in one.trace:
            _draw_looks(slide, config, one, title, outlines, paths)
        elif one.trace and "order" in one.trace:
            _draw_zooms(slide, config, source, one, title, outlines, paths)
        else:
            _draw_tiles(slide, config, source, one, title, outlines, paths)
    return paths


def _draw_tiles(slide, config, source, one, title, outlines, paths):
    """The heatmap of one slide and its most attended tiles."""
    yx, size_px, mpp = source.tiles(one.row, slide)
    scale = max(max(slide.shape) / OVERVIEW_PX, 1.0)
    heatmap(
        slide.overview(slide.mpp * scale),
        one.attention,
        yx,
        size_px * mpp / slide.mpp,
        scale,
        paths[0],
        title=title,
        mpp_level0=slide.mpp,
        label="attention",
        lesions=outlines,
    )
    best = np.argsort(-one.attention, kind="stable")[:TOP_TILES]
    # Cells of an overview are shown as they were read.
    fine = config.mpps[0] if config.looks else mpp
    side = round(size_px * mpp / fine)
    tiles = [slide.read(at, side, fine) for at in yx[best] * slide.mpp / fine]
    top_tiles(
        np.stack(tiles),
        one.attention[best],
        paths[1],
        title=one.row.slide_id,
        mpp=fine,
    )


def _draw_looks(slide, config, one, title, outlines, paths):
    """The crops of one slide, where its attention lies, and the weightiest crops."""
    method, grid = config.method, config.grid
    crops = distinct(*(one.trace[name] for name in ("which", "yx", "weight", "read")))
    mpp = slide.mpp * max(max(slide.shape) / OVERVIEW_PX, 1.0)
    looks(
        slide.overview(mpp),
        one.trace["maps"],
        crops,
        paths[0],
        title=title,
        mpp=mpp,
        cell_um=grid.size_px * grid.mpp,
        mpps=method.mpps,
        crop_px=method.crop_px,
        numbered=TOP_TILES,
        lesions=[outline * slide.mpp for outline in outlines],
    )
    pixels = [
        slide.read(at, method.crop_px, method.mpps[which])
        for which, at in zip(crops.which[:TOP_TILES], crops.yx, strict=False)
    ]
    top_crops(
        np.stack(pixels), crops, paths[1], title=one.row.slide_id, mpps=method.mpps
    )


def _draw_zooms(slide, config, source, one, title, outlines, paths):
    """Where one slide was zoomed into, its attention, and the first of the zooms."""
    yx, size_px, mpp = source.tiles(one.row, slide)
    order = one.trace["order"][: int(one.trace["steps"])]
    scale = max(max(slide.shape) / OVERVIEW_PX, 1.0)
    zooms(
        slide.overview(slide.mpp * scale),
        one.attention,
        yx,
        size_px * mpp / slide.mpp,
        scale,
        order,
        paths[0],
        title=title,
        mpp_level0=slide.mpp,
        lesions=outlines,
    )
    first, fine = order[:TOP_TILES], config.mpps[0]
    side = round(size_px * mpp / fine)
    pixels = [slide.read(at, side, fine) for at in yx[first] * slide.mpp / fine]
    top_zooms(
        np.stack(pixels),
        one.attention[first],
        paths[1],
        title=one.row.slide_id,
        mpp=fine,
        total=len(order),
    )


def results(summary: dict[str, float], ways: str) -> tuple[tables.Table, ...]:
    """By slide and patient, by class, by site, by the ways to come by a verdict."""
    recall = {"auc": "AUC", "recall": "recall", "precision": "precision", "f1": "F1"}
    found = [
        tables.levels(summary, NAMES | ECE),
        tables.breakdown(summary, "per_class.", "Each class against the rest", recall),
    ]
    if any(name.startswith("site.") for name in summary):
        found.append(tables.breakdown(summary, "site.", "By site", NAMES))
    if any(name.startswith("inference.") for name in summary):
        found.append(tables.breakdown(summary, "inference.", ways, NAMES | ECE))
    return tuple(found)


def drawings(folder, config, cohort, stages, verdicts, summary) -> tuple[Drawing, ...]:
    """ROC (also as roc.png), calibration, confusion, zooms, training, magnification."""
    labels = np.array([cohort.classes.index(v.row.label) for v in verdicts])
    p = np.stack([v.probabilities for v in verdicts])
    patients = np.array([v.row.patient_id for v in verdicts])
    ranked = [1] if len(cohort.classes) == 2 else range(len(cohort.classes))
    lines = [_roc(labels == c, p[:, c], patients, cohort, c, summary) for c in ranked]
    at = (
        (1 - summary["specificity"], summary["sensitivity"])
        if len(lines) == 1
        else None
    )
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
        Drawing(
            title="ROC",
            svg=svg(roc),
            alt="; ".join(f"{c.name}: AUC {c.auc:.3f}" for c in lines),
            caption="Test slides; band: pointwise 95 % of patients resampled.",
        ),
        Drawing(
            title="Calibration",
            svg=svg(curves.calibration(*calibration(*confidence(labels, p)), claim)),
            alt=f"calibration error {summary['calibration_error']:.3f}",
            caption=(
                f"Expected calibration error {summary['calibration_error']:.3f}, over "
                "ten bins of equal width. Numbers: slides in the bin."
            ),
        ),
        Drawing(
            title="Confusion",
            svg=svg(curves.confusion(matrix, cohort.classes)),
            alt=f"confusion matrix {matrix.tolist()} of {', '.join(cohort.classes)}",
            caption="Rows: labels; columns: verdicts.",
        ),
    ]
    drawn += _zooming(config, cohort, verdicts, labels, patients, ranked)
    for stage in stages:
        *_, log = sorted(folder.glob(f"**/{stage.name}/metrics.jsonl"))  # last fold's
        if lines := read_metrics(log):
            drawn.append(_training(lines, stage.name if len(stages) > 1 else ""))
            drawn += _magnification(lines)
    return tuple(drawn)


def limits(config: Experiment) -> tuple[str, ...]:
    """What a reader of this run must know besides."""
    said = []
    if not (config.precomputed or config.streams or config.encoder.weights):
        said.append(
            "The encoder is random: its features know colour and texture, not tissue. "
            "Weights trained on histology (--config.encoder.weights) do better."
        )
    if practice := getattr(config.data, "practice", None):
        made = "put together from real tiles" if practice.tiles else "drawn"
        said.append(f"The slides are {made}, not scanned. {_lesson(practice.preset)}")
    return tuple(said)


def _lesson(preset: Preset) -> str:
    """What a run on practice slides can show."""
    if preset is Preset.PLAIN:
        return (
            "Their lesions are plain to see: this run shows that the parts work "
            "together and is no evidence of more."
        )
    return (
        f"Preset {preset.value} decides at which scale a lesion differs, and "
        "experiments.certify tests it: what is learnt here is whether a method finds a "
        "signal of that scale, not how well it does on patients."
    )


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


def _zooming(config, cohort, verdicts, labels, patients, ranked) -> list[Drawing]:
    """Of methods that tell what they would have said after every zoom."""
    traces = [one.trace or {} for one in verdicts]
    if not all("logits" in trace and "steps" in trace for trace in traces):
        return []
    shares, p = along(
        [trace["logits"] for trace in traces],
        [int(trace["steps"]) for trace in traces],
        [len(one.attention) for one in verdicts],
    )
    truth, auc = {}, {}
    for c, name in enumerate(cohort.classes):
        if (mine := p[labels == c, :, c]).size:
            truth[name] = mine.mean(0), *np.quantile(mine, (0.25, 0.75), 0)
    for c in ranked:
        at_share = [delong(labels == c, scores, patients) for scores in p[..., c].T]
        auc[cohort.classes[c]] = tuple(np.array(at_share).T)
    first, last = (
        "; ".join(f"{name} {value[i]:.3f}" for name, (value, *_) in auc.items())
        for i in (0, -1)
    )
    folds = " Of several folds, by the first that tested a slide." * bool(
        config.data.folds
    )
    return [
        Drawing(
            title="While zooming",
            svg=svg(curves.zooming(shares, truth, auc)),
            alt=f"AUC before the first zoom: {first}; after the last: {last}",
            caption=(
                "Verdicts on test slides as tile after tile is zoomed into. Left: mean "
                "over the slides of a class, band: the middle half of them. Right: "
                f"band: 95 % interval, by patients.{folds}"
            ),
            wide=True,
        )
    ]


def _training(lines: Sequence[dict], stage: str) -> Drawing:
    known = {name for one in lines for name in one}
    validation = "val.loss" if "val.loss" in known else "val.log_loss"
    losses = {"training": "train.loss", "validation": validation}
    scores = {"validation AUC": "val.auc", "training accuracy": "train.accuracy"}
    pick = lambda wanted: {n: _line(lines, m) for n, m in wanted.items() if m in known}
    figure = curves.training(pick(losses), pick(scores))
    return Drawing(
        title=f"Training: {stage}" if stage else "Training",
        svg=svg(figure),
        alt=f"loss and scores over {lines[-1]['step']} steps",
        caption="The step that validation liked best was kept.",
        wide=True,
    )


def _magnification(lines: Sequence[dict]) -> list[Drawing]:
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
        Drawing(
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
