"""Features of slides, made once and kept in files; nothing is trained."""

import contextlib
import pathlib
import sys
from collections.abc import Sequence

import jax

from wsi_jax import config_fields
from wsi_jax.data.cohort import Row
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.files import AnyPath, is_remote, sweep
from wsi_jax.locks import locked
from wsi_jax.run.checks import check_divides, write_slides
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.run.cost_account import open_account, write_account
from wsi_jax.run.executor import Executor
from wsi_jax.run.extract.extract_cohort import (
    extract_here,
    extract_on_cluster,
    find_slides,
)
from wsi_jax.run.extract.shard import read_shard
from wsi_jax.run.run_experiment import OTHER_FOLDER, print_reasons
from wsi_jax.run.run_folder import RunError, features_folder
from wsi_jax.run.slide_record import SlideRecord
from wsi_jax.training.compile_cache import keep_compiled


def run(config: Experiment, folder: AnyPath) -> list[SlideRecord]:
    """Makes the features that are missing, of all slides or of a shard.

    Returns:
        What became of each slide, as `slides.csv` in the folder has it; of a shard, in
        the shard's folder below it.

    Raises:
        ValueError: anything wrong with config, cohort or workers.
    """
    check_extraction(config)
    keep_compiled()
    config_fields.validate(config)
    i, n = read_shard(config.shard) if config.shard else (0, 1)
    rows = slides_of(config, slice(i, None, n))
    features = features_folder(config, folder)
    lock = locked(folder, f"{OTHER_FOLDER}, or in a job array add --config.shard=auto")
    if config.shard:
        lock = contextlib.nullcontext()
        folder = shards_folder(config, folder) / f"{i}_of_{n}"
        sweep(folder)
        print(f"shard {i}/{n} of {len(rows)} slides: {folder}", flush=True)
        if not rows:
            return []
    account = folder / "cost.json"
    folder.mkdir(parents=True, exist_ok=True)
    with lock:
        with open_account(account) as meter:
            sweep(features)
            if config.executor is Executor.dask:
                records = extract_on_cluster(config, rows, features, meter)
            else:
                records = find_and_extract(config, rows, features, folder, meter)
            write_slides(folder, records)
        write_account(account, meter)
    return records


def check_extraction(config: Experiment) -> None:
    """Refuses, with a RunError, a config for which there are no features to make."""
    if config.precomputed:
        raise RunError(f"--config.precomputed={config.precomputed}: they are made")
    if not config.tilings():
        name = type(config.method).__name__
        raise RunError(f"{name} reads slides: there are no features to make")


def slides_of(config: Experiment, part: slice = slice(None)) -> Sequence[Row]:
    """The slides, or a part of them: those outside it are not opened."""
    data = config.data
    return data.slides(part) if isinstance(data, Manifest) else data.cohort().rows[part]


def shards_folder(config: Experiment, folder: AnyPath) -> pathlib.Path:
    """Where shards keep their records: other settings have other ones.

    Raises:
        RunError: it would be in an object store, which has no times of folders.
    """
    if is_remote(folder):
        raise RunError(
            f"{folder}: --config.shard and --status need a run folder on a disk of "
            "this machine, or a mounted one: name it by --config.run_dir"
        )
    return folder / "shards" / pathlib.Path(config.tilings()[-1].folder()).name


def find_and_extract(
    config: Experiment,
    rows: Sequence[Row],
    features: pathlib.Path,
    folder: AnyPath,
    meter: Meter,
) -> list[SlideRecord]:
    """Makes features by threads of this process, all slides through shared batches."""
    sheet = folder / "tissue.png"
    check_divides("encode_batch", config.encode_batch, jax.local_device_count())
    records = find_slides(config, rows, sheet, meter)
    for tiling in config.tilings():
        if not config.shard:  # the record of a shard says that it has ended
            write_slides(folder, records)
        extract_here(config, records, tiling, features, sheet, meter)
    return records


def print_summary(
    records: Sequence[SlideRecord], folder: AnyPath, config: Experiment
) -> None:
    """Prints what became of slides; exits with 1 where none of all has features."""
    print_reasons(records)
    n, refused = len(records), sum(bool(record.refusal) for record in records)
    if config.shard:
        print(f"{n - refused} of {n} slides of the shard have features")
        return
    print(f"{n - refused} of {n} slides have features: {folder / 'slides.csv'}")
    if n == refused:
        raise SystemExit(1)
    if refused > config.max_refused * n:
        print(
            f"more were refused than --config.max_refused={config.max_refused:g}: a "
            "training on them will stop; mend them, or raise it",
            file=sys.stderr,
        )
