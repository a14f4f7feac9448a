"""Features of slides, made once and kept in files; nothing is trained."""

import pathlib
import sys
from collections.abc import Callable, Sequence
from functools import partial

from wsi_jax import config_io
from wsi_jax.data.cohort import Row
from wsi_jax.evals.cost import Meter
from wsi_jax.files import sweep
from wsi_jax.locks import locked
from wsi_jax.run import extract as extraction
from wsi_jax.run import extract_on_cluster
from wsi_jax.run.checks import check_divides
from wsi_jax.run.config import Experiment, Manifest, RunError, write_csv
from wsi_jax.run.cost_account import open_account, write_account
from wsi_jax.run.executor import Executor
from wsi_jax.run.inputs import two_levels
from wsi_jax.run.progress import progress
from wsi_jax.run.run_experiment import OTHER_FOLDER, print_reasons
from wsi_jax.training.compile import make_mesh


def run(config: Experiment, folder: pathlib.Path) -> list[dict]:
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
    config_io.validate(config)
    data = config.data
    rows = data.slides() if isinstance(data, Manifest) else data.cohort().rows
    features = pathlib.Path(config.features or folder / "features")
    account = folder / "cost.json"
    folder.mkdir(parents=True, exist_ok=True)
    write, sheet = partial(write_csv, folder / "slides.csv"), folder / "tissue.png"
    with locked(folder, OTHER_FOLDER):
        with open_account(account) as meter:
            sweep(features)
            if config.executor is Executor.dask:
                slides = extract_on_cluster.extract(config, rows, features, meter)
            else:
                slides = extract_here(config, rows, features, meter, write, sheet)
            write(slides)
        write_account(account, meter)
    return slides


def extract_here(
    config: Experiment,
    rows: Sequence[Row],
    features: pathlib.Path,
    meter: Meter,
    check: Callable[[list[dict]], None],
    sheet: pathlib.Path,
) -> list[dict]:
    """By threads of this process, all slides through shared batches."""
    mesh = make_mesh()
    check_divides("encode_batch", config.encode_batch, mesh.size)
    kwargs = {"reading": config.reading, "meter": meter, "progress": progress}
    kwargs |= {"check": check, "sheet": sheet}
    if len(config.tilings()) > 1:
        return two_levels.extract(config, rows, features, mesh=mesh, **kwargs)[0]
    ready, batch = extraction.Ready(config.tiling(), mesh), config.encode_batch
    return extraction.extract(rows, ready, features, batch=batch, **kwargs)


def print_summary(
    slides: Sequence[dict], folder: pathlib.Path, max_refused: float
) -> None:
    """Prints what became of slides; exits with 1 where none has features."""
    print_reasons(slides)
    n = sum(s["status"] != "refused" for s in slides)
    print(f"{n} of {len(slides)} slides have features: {folder / 'slides.csv'}")
    if not n:
        raise SystemExit(1)
    if len(slides) - n > max_refused * len(slides):
        print(
            f"more were refused than --config.max_refused={max_refused:g}: a training "
            "on them will stop; mend them, or raise it",
            file=sys.stderr,
        )
