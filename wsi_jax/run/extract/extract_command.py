"""Features of slides, made once and kept in files; nothing is trained."""

import pathlib
import sys
from collections.abc import Sequence

import jax

from wsi_jax import config_fields
from wsi_jax.data.cohort import Row
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.files import sweep
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
from wsi_jax.run.run_experiment import OTHER_FOLDER, print_reasons
from wsi_jax.run.run_folder import RunError
from wsi_jax.run.slide_record import SlideRecord
from wsi_jax.training.compile_cache import keep_compiled


def run(config: Experiment, folder: pathlib.Path) -> list[SlideRecord]:
    """Makes the features that are missing.

    Returns:
        What became of each slide, as `slides.csv` in the folder has it.

    Raises:
        ValueError: anything wrong with config, cohort or workers.
    """
    if config.precomputed:
        raise RunError(f"--config.precomputed={config.precomputed}: they are made")
    if not config.tilings():
        name = type(config.method).__name__
        raise RunError(f"{name} reads slides: there are no features to make")
    keep_compiled()
    config_fields.validate(config)
    data = config.data
    rows = data.slides() if isinstance(data, Manifest) else data.cohort().rows
    features = pathlib.Path(config.features or folder / "features")
    account = folder / "cost.json"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, OTHER_FOLDER):
        with open_account(account) as meter:
            sweep(features)
            if config.executor is Executor.dask:
                records = extract_on_cluster(config, rows, features, meter)
            else:
                records = find_and_extract(config, rows, features, folder, meter)
            write_slides(folder, records)
        write_account(account, meter)
    return records


def find_and_extract(
    config: Experiment,
    rows: Sequence[Row],
    features: pathlib.Path,
    folder: pathlib.Path,
    meter: Meter,
) -> list[SlideRecord]:
    """Makes features by threads of this process, all slides through shared batches."""
    sheet = folder / "tissue.png"
    check_divides("encode_batch", config.encode_batch, jax.local_device_count())
    records = find_slides(config, rows, sheet, meter)
    for tiling in config.tilings():
        write_slides(folder, records)
        extract_here(config, records, tiling, features, sheet, meter)
    return records


def print_summary(
    records: Sequence[SlideRecord], folder: pathlib.Path, max_refused: float
) -> None:
    """Prints what became of slides; exits with 1 where none has features."""
    print_reasons(records)
    n = sum(not record.refusal for record in records)
    print(f"{n} of {len(records)} slides have features: {folder / 'slides.csv'}")
    if not n:
        raise SystemExit(1)
    if len(records) - n > max_refused * len(records):
        print(
            f"more were refused than --config.max_refused={max_refused:g}: a training "
            "on them will stop; mend them, or raise it",
            file=sys.stderr,
        )
