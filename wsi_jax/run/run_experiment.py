"""A whole run, from a config to its report: extract or read, train, test, report.

A run that was stopped goes on; of a finished one the report is given at once.
"""

import collections
import contextlib
import pathlib
import sys
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from wsi_jax import __version__, config_fields
from wsi_jax.data.cohort import Cohort, in_split, write_manifest
from wsi_jax.data.lint import format_counts
from wsi_jax.data.public_cohorts import pretraining_note
from wsi_jax.data.splits import use_fold
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.files import AnyPath, sweep
from wsi_jax.locks import locked
from wsi_jax.run.checks import (
    MANIFEST,
    SLIDES,
    check_cohort,
    check_divides,
    check_same_slides,
    check_slides,
    check_unchanged,
    note_stains,
    training_stain_range,
    without,
    write_slides,
)
from wsi_jax.run.cohort_predictions import Predictions
from wsi_jax.run.config import Experiment
from wsi_jax.run.cost_account import open_account, write_account
from wsi_jax.run.evaluate import evaluate, write_predictions
from wsi_jax.run.executor import Executor
from wsi_jax.run.extract.extract_cohort import (
    extract_here,
    extract_on_cluster,
    find_slides,
)
from wsi_jax.run.inputs import Input
from wsi_jax.run.predict.slide_prediction import not_finite
from wsi_jax.run.progress import progress
from wsi_jax.run.run_folder import (
    RunError,
    check_claim,
    claim,
    features_folder,
    fixed_fields,
    write_json,
)
from wsi_jax.run.slide_record import SlideRecord
from wsi_jax.run.train_fold import train
from wsi_jax.run.write_report import write_report
from wsi_jax.training.compile_cache import keep_compiled
from wsi_jax.training.mesh import make_mesh
from wsi_jax.training.processes import (
    agree,
    check_alike,
    exchange_json,
    first_does,
    first_speaks,
    is_first,
    meet,
)
from wsi_jax.types import Stage, Task

OTHER_FOLDER = "name another --config.run_dir"  # where a folder is in use


def run(config: Experiment, folder: AnyPath) -> AnyPath:
    """Does what is left of a run.

    Returns:
        The path of its report.

    Raises:
        ValueError: anything wrong with config, cohort or slides, before training; or
            another process is at work in the folder.
        Stopped: by a signal; given again, the command goes on.
    """
    if config.shard:
        raise RunError(
            f"--config.shard={config.shard}: a run trains on all slides; leave it out "
            "here, and give it to `wsi-jax extract`"
        )
    config_fields.validate(config.cluster, "config.cluster")
    config.cluster.join()  # before anything else asks JAX for devices
    config_fields.validate(config)
    with first_speaks():
        return _prepare_and_run(config, folder)


def _prepare_and_run(config: Experiment, folder: AnyPath) -> AnyPath:
    keep_compiled()
    check_claim(folder, config)
    features_folder(config, folder)  # refused before anything costs
    mesh = make_mesh()
    if config.tilings():
        check_divides("encode_batch", config.encode_batch, jax.local_device_count())
    cohort = config.data.cohort()
    check_unchanged(folder / MANIFEST, cohort)
    check_alike(
        version=__version__,
        config=fixed_fields(config),
        cohort=[[r.slide_id, r.label, r.split, r.fold] for r in cohort.rows],
        devices=jax.local_device_count(),
    )
    report = folder / "report.html"
    if agree(report.is_file()):
        return report
    parts = [use_fold(cohort, fold) for fold in range(config.data.folds)] or [cohort]
    counts = [check_cohort(part, encoder_slides(config)) for part in parts]
    print(format_counts(counts[0]), flush=True)  # of folds, the first stands for all
    for note in filter(
        None, {pretraining_note(p, config.pretrained_on()) for p in parts}
    ):
        print(f"note: {note}", file=sys.stderr, flush=True)
    tx = config.train.optimiser.make(config.train.steps)
    stages = config.stages(Task(cohort.classes), tx)

    def begin(stack):
        stack.enter_context(locked(folder, OTHER_FOLDER))
        check_claim(folder, config)  # another run may have come before the lock
        claim(folder, config)
        write_manifest(folder / MANIFEST, cohort)

    with contextlib.ExitStack() as stack:
        first_does(lambda: begin(stack))
        meter = stack.enter_context(open_account(folder / "cost.json"))
        _run(config, folder, cohort, parts, stages, mesh, meter)
        meet("end")
    return report


def encoder_slides(config: Experiment) -> tuple[str, ...]:
    """Ids of the slides that the weights of a run's encoders have learnt from."""
    trunks = () if config.precomputed else config.trunks.values()
    return tuple(name for trunk in trunks for name in trunk.training_ids())


def _run(
    config: Experiment,
    folder: AnyPath,
    cohort: Cohort,
    parts: Sequence[Cohort],
    stages: Sequence[Stage],
    mesh: Mesh,
    meter: Meter,
) -> None:
    """Reads, trains, tests and reports, in a folder that is locked."""
    account = folder / "cost.json"
    records, source = read_slides(config, cohort, folder, parts, mesh, meter)
    first_does(lambda: write_account(account, meter))
    refused = {record.slide_id for record in records if record.refusal}
    parts = [without(part, refused) for part in parts]
    stains = [training_stain_range(records, part) for part in parts]
    note_stains(records, parts, stains)
    first_does(lambda: write_slides(folder, records))
    print_reasons(records)
    for estimate in source.describe_memory(stages, without(cohort, refused)):
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
    notes = dict(collections.ChainMap(*exchange_json(source.notes())))
    if not is_first():
        return  # the first writes what all have found
    if add_reasons(records, notes, unpredicted):
        write_slides(folder, records)
    metrics, predictions = evaluate(config, cohort, tested)
    write_account(account, meter)
    write_predictions(folder / "predictions.csv", predictions, cohort)
    write_json(folder / "metrics.json", metrics)
    write_report.write(
        folder,
        config,
        cohort,
        source,
        stages,
        slides=[record.columns() for record in records],
        predictions=predictions,
        metrics=metrics,
        cost=meter.as_dict(),
        progress=progress,
    )


def print_reasons(records: Sequence[SlideRecord]) -> None:
    """Prints why slides were refused, and notes on others, to stderr."""
    for message in filter(None, (record.message() for record in records)):
        print(message, file=sys.stderr, flush=True)


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
    records: Sequence[SlideRecord], notes: dict[str, str], refused: dict[str, str]
) -> bool:
    """Adds what training and test found out of slides, and prints it.

    Args:
        records: records of all slides.
        notes: a note of each slide that has one.
        refused: why a slide has no prediction, by slide.

    Returns:
        Whether there was anything.
    """
    for record in records:
        record.refuse(refused.get(record.slide_id, ""))
        record.note(notes.get(record.slide_id, ""))
    for kind, reasons in (("note", notes), ("refused", refused)):
        for reason in reasons.values():
            print(f"{kind}: {reason}", file=sys.stderr)
    return bool(notes or refused)


def read_slides(
    config: Experiment,
    cohort: Cohort,
    folder: AnyPath,
    parts: Sequence[Cohort],
    mesh: Mesh,
    meter: Meter,
) -> tuple[list[SlideRecord], Input]:
    """What became of each slide, and where batches come from.

    Raises:
        ValueError: too few slides can be used, or they are not those with which the
            run began.
    """
    features = features_folder(config, folder)
    sheet, tilings = folder / "tissue.png", config.tilings()

    def check(records):
        slides = encoder_slides(config)
        first_does(lambda: check_slides(folder, config, parts, slides, records))
        check_alike(refusals={r.slide_id: r.refusal for r in records if r.refusal})

    records = find_slides(config, cohort.rows, sheet, meter)
    check(records)  # where too many are refused, nothing has begun
    if tilings and is_first():
        sweep(features)
    if tilings and config.executor is Executor.dask:
        rows = [record.row for record in records if not record.refusal]
        # What follows has them made.
        first_does(lambda: extract_on_cluster(config, rows, features, meter))
    for tiling in tilings:
        extract_here(config, records, tiling, features, sheet, meter)
        check(records)
    return records, open_input(config, records, features, folder, mesh)


def open_input(
    config: Experiment,
    records: Sequence[SlideRecord],
    features: pathlib.Path,
    folder: AnyPath,
    mesh: Mesh,
) -> Input:
    """Where batches come from: feature files, or the slides themselves."""
    if config.precomputed:
        files = [pathlib.Path(config.precomputed)]
    elif tilings := config.tilings():
        files = [features / tiling.folder() for tiling in tilings]
    else:
        slides = [record.slide for record in records]
        settings = config.tiling().fingerprint()
        first_does(lambda: check_same_slides(folder / SLIDES, slides, settings))
        return config.input.from_config(config, mesh, slides)
    return config.input.from_config(config, mesh, *files)
