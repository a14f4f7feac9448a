"""Features made by many workers: any `concurrent.futures` executor, of any machines.

A slide is a unit of work. Its feature file is whole or absent and two workers write the
same one, so a unit may be run again, or twice at once, and nothing is lost or doubled.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np

from wsi_jax.data.cohort import PATH_COLUMNS, Row
from wsi_jax.data.features import FeatureError, feature_shape
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import WORK, Meter
from wsi_jax.run.executor import WorkerError
from wsi_jax.run.extract.extract_worker import (
    WorkerResult,
    extract_slide,
    file_size,
    worker_check,
)
from wsi_jax.run.slide_record import SlideRecord, tiled_record
from wsi_jax.run.tiling import TiledSlide, Tiling, tile_slide

VISIBLE_S = 10.0  # network file systems remember for a while what was not there


def extract_distributed(
    executor: concurrent.futures.Executor,
    rows: Sequence[Row],
    tiling: Tiling,
    folder: pathlib.Path,
    *,
    batch: int,
    reading: Reading,
    meter: Meter,
    progress: Callable,
    lost: type[Exception] | tuple[type[Exception], ...] = (),
) -> list[SlideRecord]:
    """Finds tiles and writes features by the workers of an executor, a slide at a time.

    Paths of slides, of weights and of `folder` must lead to the same files on every
    worker. Each encodes on all devices that JAX has there: several processes on one
    machine must each be shown their own. Processes must be spawned, not forked.

    Args:
        executor: its workers can import this package.
        rows: the slides.
        tiling: grid, tissue, encoder; of tiles, or of their children.
        folder: folder of all features; each tiling has its own below it.
        batch: tiles in a batch, on each worker.
        reading: threads and buffers of each worker.
        meter: is charged with what workers count, not with their seconds of waiting.
        progress: (what, total) -> a context that gives `advance(n, note)`.
        lost: error of a job whose workers have died of its slide; that is refused.

    Raises:
        WorkerError: a worker lacks the weights or the folder, has others, runs other
            code, or sees other slides.
        BrokenExecutor: the executor lost its workers; with a new one it goes on.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    settings, made = tiling.fingerprint(), folder / tiling.folder()
    tiling, records, jobs = _with_absolute_weights(tiling), {}, {}
    with (
        worker_check(folder) as check,
        progress("slides", len(rows)) as advance,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(lambda: [job.cancel() for job in jobs])
        shared = tiling, settings, check, batch, reading
        for row in rows:
            missing = None if os.path.exists(row.path) else tile_slide(row, tiling)
            if missing is None or not missing.reason:
                own = _absolute(row), file_size(row.path)
                jobs[executor.submit(extract_slide, *own, *shared)] = row
            else:
                records[row.slide_id] = tiled_record(missing, "encoded")
                advance(1, before=True)
        for job in concurrent.futures.as_completed(jobs):
            name = jobs[job].slide_id
            result = _result(job, jobs[job], made / f"{name}.h5", lost)
            records[name] = result.record
            _charge(meter, f"{tiling.folder()}/{name}", result.cost)
            advance(1)
    return [records[row.slide_id] for row in rows]


def _result(job, row: Row, path: pathlib.Path, lost) -> WorkerResult:
    """The result of a job that has ended; `path` is the slide's feature file."""
    try:
        result = job.result()
    except lost as error:
        reason = f"{row.slide_id}: {error}"
        slide = TiledSlide(row, np.zeros((0, 2), np.int32), reason=reason)
        return WorkerResult(tiled_record(slide, "encoded"), {}, "")
    except (ImportError, AttributeError) as error:
        check_loaded(error)
        raise
    if not result.record.refusal:
        _check_visible(result, path)
    result.record.row = row
    return result


def check_loaded(error: Exception) -> None:
    """Raises WorkerError where a worker could not even load the job."""
    if isinstance(error, ImportError) or "Can't get attribute" in str(error):
        raise WorkerError(
            f"a worker cannot load wsi_jax as it is here ({error}); install the same "
            "wsi_jax for all workers and start them again"
        ) from error


def _check_visible(result: WorkerResult, path: pathlib.Path) -> None:
    """Refuses a slide whose feature file cannot be read here."""
    until = time.monotonic() + VISIBLE_S
    while True:
        try:
            feature_shape(path)
            return
        except FeatureError as error:
            if time.monotonic() > until:
                result.record.refuse(
                    f"{result.record.slide_id}: a worker on {result.host} has made "
                    f"{path}, and here it cannot be read ({error}); see that both have "
                    "one folder by this name, and give the same command again"
                )
                return
            with contextlib.suppress(OSError):
                os.listdir(path.parent)  # makes a network's file system look again
            time.sleep(0.2)


def _charge(meter: Meter, unit: str, cost: dict) -> None:
    """Charges what a worker has counted."""
    meter.add(device_s=cost.get("device_s", 0))
    if work := {name: cost[name] for name in WORK if cost.get(name)}:
        meter.begin(unit)
        meter.record(unit, **work)


def _absolute(row: Row) -> Row:
    """The slide by names that hold in any working folder."""
    paths = {name: getattr(row, name) for name in PATH_COLUMNS}
    paths = {name: os.path.abspath(path) for name, path in paths.items() if path}
    return dataclasses.replace(row, **paths)


def _with_absolute_weights(tiling: Tiling) -> Tiling:
    """The tiling, its weights by a name that holds in any working folder."""
    weights = tiling.encoder.weights
    encoder = dataclasses.replace(
        tiling.encoder, weights=weights and os.path.abspath(weights)
    )
    return dataclasses.replace(tiling, encoder=encoder)
