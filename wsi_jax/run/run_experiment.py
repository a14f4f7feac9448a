"""A whole run, from a config to its report: extract or read, train, test, report.

A run that was stopped goes on; of a finished one the report is given at once.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from wsi_jax import config_io
from wsi_jax.data.cohort import Cohort, in_split, write_manifest
from wsi_jax.data.lint import format_counts
from wsi_jax.data.splits import use_fold
from wsi_jax.evals.cost import Meter
from wsi_jax.files import sweep
from wsi_jax.locks import locked
from wsi_jax.run import extract as extraction
from wsi_jax.run import extract_on_cluster, write_report
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
from wsi_jax.run.cost_account import open_account, write_account
from wsi_jax.run.evaluate import evaluate, write_predictions
from wsi_jax.run.executor import Executor
from wsi_jax.run.inputs import FeatureInput, Input, SlideInput, two_levels
from wsi_jax.run.predictor import not_finite
from wsi_jax.run.progress import progress
from wsi_jax.run.train import Predictions, train
from wsi_jax.training.compile import make_mesh
from wsi_jax.types import Stage, Task

OTHER_FOLDER = "name another --config.run_dir"  # where a folder is in use


def run(config: Experiment, folder: pathlib.Path) -> pathlib.Path:
    """Does what is left of a run.

    Returns:
        The path of its report.

    Raises:
        ValueError: anything wrong with config, cohort or slides, before training; or
            another process is at work in the folder.
        Stopped: by a signal; given again, the command goes on.
    """
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
    counts = [check_cohort(part, encoder_slides(config)) for part in parts]
    print(format_counts(counts[0]), flush=True)  # of folds, the first stands for all
    tx = config.train.optimiser.make(config.train.steps)
    stages = config.stages(Task(cohort.classes), tx)
    check_plans(config, stages, mesh.size)
    with locked(folder, OTHER_FOLDER):
        check_claim(folder, config)  # another run may have come before the lock
        claim(folder, config)
        write_manifest(folder / MANIFEST, cohort)
        with open_account(folder / "cost.json") as meter:
            _run(config, folder, cohort, parts, stages, mesh, meter)
    return report


def encoder_slides(config: Experiment) -> tuple[str, ...]:
    """Ids of the slides that the weights of a run's encoders have learnt from."""
    trunks = () if config.precomputed else config.trunks.values()
    return tuple(name for trunk in trunks for name in trunk.training_ids())


def _run(
    config: Experiment,
    folder: pathlib.Path,
    cohort: Cohort,
    parts: Sequence[Cohort],
    stages: Sequence[Stage],
    mesh: Mesh,
    meter: Meter,
) -> None:
    """Reads, trains, tests and reports, in a folder that is locked."""
    account = folder / "cost.json"
    check = lambda slides: check_slides(
        folder, config, parts, encoder_slides(config), slides
    )
    slides, source = read_slides(config, cohort, folder, mesh, meter, check)
    write_account(account, meter)
    refused = check(slides)
    parts = [without(part, refused) for part in parts]
    stains = [learnt_stains(slides, part) for part in parts]
    note_stains(slides, parts, stains)
    write_csv(folder / "slides.csv", slides)
    print_reasons(slides)
    for estimate in source.memory_estimates(stages, without(cohort, refused)):
        print(estimate, flush=True)
    tested = []
    for i, part in enumerate(parts):
        unit = f"fold_{i}/" if len(parts) > 1 else ""
        predictions = train(
            config, part, source, stages, folder / unit, meter, progress,
            stain=stains[i], unit=unit,
        )  # fmt: skip
        tested.append(predictions)
    unpredicted = refuse_unpredicted(parts, tested)
    if add_reasons(slides, source.notes(), unpredicted):
        write_csv(folder / "slides.csv", slides)
    metrics, predictions = evaluate(config, cohort, tested)
    write_account(account, meter)
    write_predictions(folder / "predictions.csv", predictions, cohort)
    write_json(folder / "metrics.json", metrics)
    write_report.write(
        folder, config, cohort, source, stages, slides, predictions, metrics,
        meter.as_dict(), progress,
    )  # fmt: skip


def print_reasons(slides: Sequence[dict]) -> None:
    """Prints why slides were refused, and notes on others, to stderr."""
    for s in slides:
        if s["reason"]:
            note = s["status"] != "refused"
            kind = f"note: {s['slide_id']}" if note else "refused"
            print(f"{kind}: {s['reason']}", file=sys.stderr, flush=True)


def refuse_unpredicted(
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


def add_reasons(
    slides: Sequence[dict], notes: dict[str, str], refused: dict[str, str]
) -> bool:
    """Adds what training and test found out of slides, in place, and prints it.

    Args:
        slides: rows of slides.csv.
        notes: by slide.
        refused: why a slide has no prediction, by slide.

    Returns:
        Whether there was anything.
    """
    for s in slides:
        name = s["slide_id"]
        s["status"] = "refused" if name in refused else s["status"]
        reasons = s["reason"], notes.get(name), refused.get(name)
        s["reason"] = "; ".join(filter(None, reasons))
    for kind, reasons in (("note", notes), ("refused", refused)):
        for reason in reasons.values():
            print(f"{kind}: {reason}", file=sys.stderr)
    return bool(notes or refused)


def read_slides(
    config: Experiment,
    cohort: Cohort,
    folder: pathlib.Path,
    mesh: Mesh,
    meter: Meter,
    check: Callable[[list[dict]], None],
) -> tuple[list[dict], Input]:
    """What became of each slide, and where batches come from."""
    if config.precomputed:
        files = pathlib.Path(config.precomputed)
        return extraction.adopt(cohort.rows, files), FeatureInput.for_training(
            config, mesh, files
        )
    sheet, tiling = folder / "tissue.png", config.tiling()
    kwargs = {"reading": config.reading, "meter": meter, "progress": progress}
    if issubclass(config.input, SlideInput):
        tiled = extraction.look(cohort.rows, tiling, sheet=sheet, **kwargs)
        slides = extraction.streamed(tiled)
        check(slides)  # too many refused: nothing has begun
        check_same_slides(folder / SLIDES, tiled, tiling.fingerprint())
        return slides, config.input.for_training(config, mesh, tiled)
    features = pathlib.Path(config.features or folder / "features")
    sweep(features)
    if config.executor is Executor.dask:  # what follows finds them made
        extract_on_cluster.extract(config, cohort.rows, features, meter)
    kwargs |= {"check": check, "sheet": sheet}
    if len(config.tilings()) > 1:
        return two_levels.extract(config, cohort.rows, features, mesh=mesh, **kwargs)
    ready, batch = extraction.Ready(tiling, mesh), config.encode_batch
    slides = extraction.extract(cohort.rows, ready, features, batch=batch, **kwargs)
    return slides, FeatureInput.for_training(config, mesh, features / tiling.folder())
