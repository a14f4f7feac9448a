"""Features of slides, made once: by this machine, or by all that Dask has.

    python -m experiments.extract_features \
        --config experiments/configs/cohort/abmil.py --config.data.manifest=SLIDES \
        --config.encoder.weights=resnet50.safetensors --config.features=features

Of a method on tiles any config will do. `data.manifest` is a CSV as for
`experiments.cohort`, with labels or without, or just a folder of slides. What is made
is what that command would make first: given the same config and `features`, it trains
at once. Slides that have their features are skipped; `slides.csv` in the run's folder
says what became of each and why.

Across machines that share slides, weights and features by the same names:

    dask scheduler
    dask worker tcp://HOST:8786 --nthreads 2    # one for each device, on any machine
    ... --config.executor=dask --config.scheduler=tcp://HOST:8786

With two threads a worker reads one slide while it encodes another. On a machine with
several devices show each worker its own (CUDA_VISIBLE_DEVICES). Workers may come late,
and one that dies loses no more than the slide that it is at: another does it again. One
that runs other code, or sees other slides or another folder by the same name, stops the
command with its host's name.

A scheduler and its workers run whatever anyone who reaches them sends: let them listen
to a private network only (`dask scheduler --host ADDRESS`), or to those who hold a
certificate (`tls://HOST:8786` and Dask's settings `distributed.comm.tls`).

The command ends with exit code 1 where no slide has features. `max_refused` stops
trainings, not this; that more are refused than it allows is printed.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence
from functools import partial

from absl import flags, logging

from experiments import commandline
from experiments.cohort import MEND, accounted, device_bytes, explain
from wsi_jax import config_io
from wsi_jax.data.cohort import Row
from wsi_jax.evals.cost import Meter
from wsi_jax.files import sweep
from wsi_jax.locks import locked
from wsi_jax.run import extract as extraction
from wsi_jax.run import extract_on_cluster, zoom_inputs
from wsi_jax.run.checks import check_divides
from wsi_jax.run.config import (
    Experiment,
    Manifest,
    RunError,
    write_csv,
    write_json,
)
from wsi_jax.run.executor import Executor
from wsi_jax.run.progress import progress
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
    if config.streams:
        name = type(config.method).__name__
        raise RunError(f"{name} reads slides: there are no features to make")
    config_io.validate(config)
    data = config.data
    rows = data.slides() if isinstance(data, Manifest) else data.cohort().rows
    features = pathlib.Path(config.features or folder / "features")
    account = folder / "cost.json"
    journal = account.with_suffix(".jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    write, sheet = partial(write_csv, folder / "slides.csv"), folder / "tissue.png"
    with locked(folder, MEND):
        meter = Meter(device_bytes=device_bytes, journal=journal)
        with accounted(account, meter):
            sweep(features)
            if config.executor is Executor.dask:
                slides = extract_on_cluster.extract(config, rows, features, meter)
            else:
                slides = here(config, rows, features, meter, write, sheet)
            write(slides)
    write_json(account, meter.as_dict())
    return slides


def here(
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
    how = {"reading": config.reading, "meter": meter, "progress": progress}
    how |= {"check": check, "sheet": sheet}
    if config.zooms:
        return zoom_inputs.extract(config, rows, features, mesh=mesh, **how)[0]
    ready = extraction.Ready(config.tiling(), mesh)
    return extraction.extract(rows, ready, features, batch=config.encode_batch, **how)


def tell(slides: list[dict], folder: pathlib.Path, max_refused: float) -> None:
    """Says what became of slides; exits with 1 where nothing came of any."""
    for s in slides:
        said = "refused" if s["status"] == "refused" else f"note: {s['slide_id']}"
        if s["reason"]:
            print(f"{said}: {s['reason']}", file=sys.stderr)
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


def main(argv) -> None:
    """Does what the command line asks for; an error of the user's is one message."""
    del argv
    logging.set_verbosity(logging.WARNING)
    config, file = flags.FLAGS.config, flags.FLAGS["config"].config_filename
    folder = pathlib.Path(
        config.run_dir or pathlib.Path("runs") / pathlib.Path(file).stem
    )
    try:
        slides = run(config, folder)
    except (ValueError, ArithmeticError, OSError) as error:
        raise SystemExit(explain(error, folder)) from error
    tell(slides, folder, config.max_refused)


if __name__ == "__main__":
    commandline.launch(main)
