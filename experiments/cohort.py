"""Slides and labels in, a run folder out: any cohort, any method.

    python -m experiments.cohort --config experiments/configs/cohort/abmil.py \
        --config.data.manifest=my_slides.csv

The same command resumes a run that was stopped, and prints the report of a finished
one. Any field of the config can be set from the command line: --config.grid.mpp=0.25.
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from absl import flags, logging
from jax.sharding import Mesh

from experiments import commandline
from wsi_jax import config_io
from wsi_jax.data.cohort import Cohort, in_split, label_ids, write_manifest
from wsi_jax.data.disk_space import is_full
from wsi_jax.data.lint import format_counts
from wsi_jax.data.splits import use_fold
from wsi_jax.evals.cost import Meter
from wsi_jax.evals.metrics import predict as decide
from wsi_jax.evals.metrics import slide_metrics
from wsi_jax.evals.summary import summarise
from wsi_jax.files import sweep
from wsi_jax.locks import locked
from wsi_jax.run import extract as extraction
from wsi_jax.run import extract_on_cluster, write_report, zoom_inputs
from wsi_jax.run.checks import (
    MANIFEST,
    SLIDES,
    check_batches,
    check_cohort,
    check_plans,
    check_same_slides,
    check_slides,
    check_unchanged,
    learnt_stains,
    note_stains,
    without,
)
from wsi_jax.run.config import (
    Experiment,
    RunError,
    check_claim,
    claim,
    write_csv,
    write_json,
)
from wsi_jax.run.executor import Executor
from wsi_jax.run.inputs import FeatureSource, LookSource, SlideSource, Source
from wsi_jax.run.predictor import not_finite
from wsi_jax.run.progress import progress
from wsi_jax.run.stopping import Stopped
from wsi_jax.run.train import Predicted, Predictions, train
from wsi_jax.training.compile import make_mesh
from wsi_jax.types import Task

MEND = "name another --config.run_dir"  # of a folder that is in use


def run(config: Experiment, folder: pathlib.Path) -> pathlib.Path:
    """Does what is left of a run.

    Returns:
        The path of its report.

    Raises:
        ValueError: anything wrong with config, cohort or slides, before training; or
            another process is at work in the folder.
        Stopped: by a signal; given again, the command goes on.
    """
    with contextlib.ExitStack() as stack:
        return resume(config, folder, stack)


def resume(
    config: Experiment, folder: pathlib.Path, stack: contextlib.ExitStack
) -> pathlib.Path:
    """As `run`; `stack` is closed behind it, and with it the folder's lock."""
    config_io.validate(config)
    check_claim(folder, config)
    mesh = make_mesh()
    check_batches(config, mesh.size)
    cohort = config.data.cohort()
    check_unchanged(folder / MANIFEST, cohort)
    report = folder / "report.html"
    if report.is_file():
        return report
    parts = [use_fold(cohort, fold) for fold in range(config.data.folds)] or [cohort]
    trunks = () if config.precomputed else config.trunks.values()
    seen = tuple(name for trunk in trunks for name in trunk.training_ids())
    found = [check_cohort(part, seen) for part in parts]
    print(format_counts(found[0]), flush=True)  # of folds, the first stands for all
    tx = config.train.optimiser.make(config.train.steps)
    stages = config.stages(Task(cohort.classes), tx)
    check_plans(config, stages, mesh.size)
    stack.enter_context(locked(folder, MEND))
    check_claim(folder, config)  # another run may have come before the lock
    claim(folder, config)
    write_manifest(folder / MANIFEST, cohort)

    account = folder / "cost.json"
    meter = Meter(device_bytes=device_bytes, journal=account.with_suffix(".jsonl"))
    stack.enter_context(accounted(account, meter))
    check = lambda slides: check_slides(folder, config, parts, seen, slides)
    slides, source = read_slides(config, cohort, folder, mesh, meter, check)
    write_json(account, meter.as_dict())
    refused = check(slides)
    ranges = [learnt_stains(slides, without(part, refused)) for part in parts]
    note_stains(slides, parts, ranges)
    write_csv(folder / "slides.csv", slides)
    for s in slides:
        said = "refused" if s["slide_id"] in refused else f"note: {s['slide_id']}"
        if s["reason"]:
            print(f"{said}: {s['reason']}", file=sys.stderr, flush=True)

    for stage in stages:
        if stage.memory_estimate:
            print(
                stage.memory_estimate(source.views(without(cohort, refused))),
                flush=True,
            )
    tested = []
    for i, part in enumerate(parts):
        part = without(part, refused)
        unit = f"fold_{i}/" if len(parts) > 1 else ""
        predictions = train(
            config, part, source, stages, folder / unit, meter, progress,
            stain=ranges[i], unit=unit,
        )  # fmt: skip
        tested.append(predictions)
    lost = unpredicted([without(part, refused) for part in parts], tested)
    if (notes := source.notes()) or lost:
        for s in slides:
            name = s["slide_id"]
            s["status"] = "refused" if name in lost else s["status"]
            s["reason"] = "; ".join(
                filter(None, (s["reason"], notes.get(name), lost.get(name)))
            )
        write_csv(folder / "slides.csv", slides)
        lines = [f"note: {note}" for note in notes.values()]
        lines += [f"refused: {reason}" for reason in lost.values()]
        print("\n".join(lines), file=sys.stderr)
    metrics, verdicts = evaluate(config, cohort, tested)
    write_json(account, meter.as_dict())
    write_predictions(folder / "predictions.csv", verdicts, cohort)
    write_json(folder / "metrics.json", metrics)
    write_report.write(
        folder, config, cohort, source, stages, slides, verdicts, metrics,
        meter.as_dict(), progress,
    )  # fmt: skip
    return report


def unpredicted(
    parts: Sequence[Cohort], tested: Sequence[Predictions]
) -> dict[str, str]:
    """Why there is no prediction of some test slides, by slide.

    Raises:
        RunError: a fold has none at all.
    """
    if not all(fold.slides for fold in tested):
        raise RunError(
            "no test slide has a prediction: the method's numbers are not finite for "
            "any; lower --config.train.optimiser.learning_rate, in a new "
            "--config.run_dir"
        )
    predicted = {one.row.slide_id for fold in tested for one in fold.slides}
    names = [row.slide_id for part in parts for row in in_split(part, "test").rows]
    return {name: not_finite(name) for name in names if name not in predicted}


def read_slides(
    config: Experiment,
    cohort: Cohort,
    folder: pathlib.Path,
    mesh: Mesh,
    meter: Meter,
    check: Callable[[list[dict]], None],
) -> tuple[list[dict], Source]:
    """What became of each slide, and where batches come from."""
    if config.precomputed:
        files = pathlib.Path(config.precomputed)
        return extraction.adopt(cohort.rows, files), FeatureSource(config, files, mesh)
    sheet, tiling = folder / "tissue.png", config.tiling()
    how = {"reading": config.reading, "meter": meter, "progress": progress}
    if config.streams:
        found = extraction.look(cohort.rows, tiling, sheet=sheet, **how)
        slides = extraction.streamed(found)
        check(slides)  # too many refused: nothing has begun
        check_same_slides(folder / SLIDES, found, tiling.fingerprint())
        if config.looks:
            return slides, LookSource(config, found, mesh)
        return slides, SlideSource(config, found)
    features = pathlib.Path(config.features or folder / "features")
    sweep(features)
    if config.executor is Executor.dask:  # what follows finds them made
        extract_on_cluster.extract(config, cohort.rows, features, meter)
    if config.zooms:
        how |= {"mesh": mesh, "check": check, "sheet": sheet}
        return zoom_inputs.extract(config, cohort.rows, features, **how)
    slides = extraction.extract(
        cohort.rows, extraction.Ready(tiling, mesh), features,
        batch=config.encode_batch, check=check, sheet=sheet, **how,
    )  # fmt: skip
    return slides, FeatureSource(config, features / tiling.folder(), mesh)


def evaluate(
    config: Experiment, cohort: Cohort, tested: Sequence[Predictions]
) -> tuple[dict[str, float | str], list[Predicted]]:
    """Metrics of the test slides, and one prediction of each.

    Where several folds tested the same slides, the mean probability decides, at the
    mean threshold. Where each tested slides of its own, each decides at its own
    threshold, which its validation slides chose, and AUC counts pairs of slides of one
    fold: models of different folds have no common scale. Probabilities are as the
    models gave them.

    Args:
        config: of the run.
        cohort: all slides.
        tested: of each fold; of one training alone where there are no folds.
    """
    by_slide: dict[str, list[Predicted]] = {}
    for fold, one in enumerate(tested):
        for prediction in one.slides:
            name = prediction.row.slide_id
            by_slide.setdefault(name, []).append(prediction._replace(fold=fold))
    apart = len(tested) > 1 and max(map(len, by_slide.values())) == 1
    verdicts = []
    for several in by_slide.values():
        mean = lambda values: np.mean(list(values), 0)
        verdict = several[0]._replace(
            probabilities=mean(one.probabilities for one in several),
            attention=mean(one.attention for one in several),
            others={
                name: mean(one.others[name] for one in several)
                for name in several[0].others
            },
        )
        verdicts.append(verdict if apart else verdict._replace(fold=None))
    folds = np.array([v.fold for v in verdicts]) if apart else None
    threshold = combined([one.threshold for one in tested], folds)
    called = decide(np.stack([v.probabilities for v in verdicts]), threshold)
    verdicts = [
        v._replace(called=int(label)) for v, label in zip(verdicts, called, strict=True)
    ]
    p = [v.probabilities for v in verdicts]
    sites = [v.row.site for v in verdicts]
    found = measure(cohort, verdicts, p, threshold, sites)
    if len(tested) > 1:
        for fold, one in enumerate(tested):
            found |= by_fold(cohort, f"fold.{fold}.", one)
    found |= otherwise(config, cohort, verdicts, tested, found)
    return {f"test.{name}": value for name, value in found.items()}, verdicts


def combined(
    thresholds: Sequence[float | None], folds: np.ndarray | None
) -> float | np.ndarray | None:
    """The threshold of each slide [n], by its fold; or the mean of all folds'."""
    if thresholds[0] is None:
        return None
    return float(np.mean(thresholds)) if folds is None else np.array(thresholds)[folds]


def measure(
    cohort: Cohort,
    verdicts: Sequence[Predicted],
    p: Sequence[np.ndarray],
    threshold: float | np.ndarray | None,
    sites: Sequence[str] | None = None,
) -> dict[str, float | str]:
    """Metrics of some probabilities of the test slides, with their intervals."""
    apart = verdicts[0].fold is not None
    return summarise(
        label_ids(cohort._replace(rows=tuple(v.row for v in verdicts))),
        np.stack(p),
        cohort.classes,
        patients=[v.row.patient_id for v in verdicts],
        sites=sites,
        threshold=threshold,
        groups=[v.fold for v in verdicts] if apart else None,
    )


def by_fold(cohort: Cohort, prefix: str, tested: Predictions) -> dict[str, float]:
    """How the model of one fold does on the slides that it tests."""
    rows = tuple(one.row for one in tested.slides)
    p = np.stack([one.probabilities for one in tested.slides])
    found = slide_metrics(label_ids(cohort._replace(rows=rows)), p, tested.threshold)
    values = {"n": len(rows)}
    if tested.threshold is not None:
        values["threshold"] = tested.threshold
    values |= {name: float(found[name]) for name in ("auc", "balanced_accuracy")}
    return {prefix + name: value for name, value in values.items()}


def otherwise(
    config: Experiment,
    cohort: Cohort,
    verdicts: list[Predicted],
    tested: Sequence[Predictions],
    found: dict[str, float | str],
) -> dict[str, float]:
    """The verdicts by each way to come by them, and where attention lies."""
    if not verdicts[0].others:
        return {}
    names = [
        f"{name}{end}" for name in write_report.NAMES for end in ("", "_lo", "_hi")
    ]
    names += write_report.ECE
    by, thresholds = {config.method.way: found}, {}
    folds = None if verdicts[0].fold is None else np.array([v.fold for v in verdicts])
    for name in verdicts[0].others:
        own = [one.others[name] for one in tested]
        p = [v.others[name] for v in verdicts]
        by[name] = measure(cohort, verdicts, p, combined(own, folds))
        if own[0] is not None and len(own) > 1:
            thresholds |= {
                f"inference.{name}.fold.{k}.threshold": t for k, t in enumerate(own)
            }
    told = {
        f"inference.{way}.{name}": summary[name]
        for way, summary in by.items()
        for name in ("n", "threshold", *names)
        if name in summary
    }
    told |= thresholds
    if not config.looks:
        return told
    mass = np.mean([v.trace["maps"].sum((1, 2)) for v in verdicts], 0)
    pairs = zip(config.method.mpps, mass.tolist(), strict=True)
    return told | {f"mass.{mpp:g}": share for mpp, share in pairs}


def write_predictions(path, verdicts: list[Predicted], cohort: Cohort) -> None:
    """One line a test slide: who it is, what it is called, each class's probability.

    The fold stands beside it where each tests slides of its own. Probabilities by the
    method's other ways to come by a verdict stand behind.
    """
    lines = []
    for v in verdicts:
        who = {
            name: getattr(v.row, name) for name in ("slide_id", "patient_id", "site")
        }
        if v.fold is not None:
            who["fold"] = v.fold
        said = {"label": v.row.label, "prediction": cohort.classes[v.called]}
        each = zip(cohort.classes, v.probabilities, strict=True)
        each = {f"p_{name}": f"{p:.6f}" for name, p in each}
        for way, p in v.others.items():
            pairs = zip(cohort.classes, p, strict=True)
            each |= {f"{way}.p_{name}": f"{p:.6f}" for name, p in pairs}
        lines.append(who | said | each)
    write_csv(path, lines)


@contextlib.contextmanager
def accounted(path: pathlib.Path, meter: Meter) -> Iterator[None]:
    """Writes down the seconds so far; where a signal ends the block, the account."""
    try:
        yield
    except Stopped:
        write_json(path, meter.as_dict())
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk has its own message by now
            meter.save()


def device_bytes() -> int | None:
    """Peak bytes on the busiest device; None where it does not tell."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return max(peaks, default=None)


def main(argv) -> None:
    """Runs the config on the command line; an error of the user's is one message."""
    del argv
    logging.set_verbosity(logging.WARNING)
    config, file = flags.FLAGS.config, flags.FLAGS["config"].config_filename
    folder = pathlib.Path(
        config.run_dir or pathlib.Path("runs") / pathlib.Path(file).stem
    )
    config = dataclasses.replace(config, run_dir="")
    try:
        report = run(config, folder)
    except (ValueError, ArithmeticError, OSError) as error:
        raise SystemExit(explain(error, folder)) from error
    print((folder / "metrics.txt").read_text())
    print(f"report: {report}")


def explain(error: Exception, folder: pathlib.Path) -> str:
    """An error of the user's, or of the user's disk, as one message."""
    if is_full(error):
        where = getattr(error, "filename", None) or folder
        return (
            f"{where}: no space left on its disk. Free some and give the same command "
            "again: it goes on from where it was"
        )
    if isinstance(error, OSError) and error.filename:
        reasons = {
            IsADirectoryError: "is a folder, and a file is wanted; name another",
            NotADirectoryError: "is below a file, and a folder is wanted; name another",
            FileExistsError: "is a file, and a folder is wanted; name another",
            FileNotFoundError: "is not there; mend the path",
            PermissionError: "may not be read or written; ask for the right, or name "
            "another",
        }
        return f"{error.filename}: {reasons.get(type(error), error.strerror)}"
    name = type(error).__name__
    return str(error) if name == "ValueError" else f"{name}: {error}"


def launch() -> None:
    """Parses the command line and runs `main`."""
    commandline.launch(main)


if __name__ == "__main__":
    launch()
