"""Features made by many workers: any `concurrent.futures` executor, of any machines.

A slide is a unit of work. Its feature file is whole or absent and two workers write the
same one, so a unit may be run again, or twice at once, and nothing is lost or doubled.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from wsi_jax.data.cohort import PATH_COLUMNS, Row
from wsi_jax.data.tiles import Reading
from wsi_jax.evals.cost import COUNTERS, Meter
from wsi_jax.pipeline import Ready, extract, streamed
from wsi_jax.survey import Surveyed, Tiling, survey
from wsi_jax.train.compile import make_mesh


class WorkerError(ValueError):
    """A worker cannot do what it is asked to; the message names it and the mend."""


def spread(
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
) -> list[dict]:
    """As `pipeline.extract`, by the workers of an executor, a slide at a time.

    Paths of slides, of weights and of `folder` must lead to the same files on every
    worker. Each encodes on all devices that JAX has there: of processes on one machine
    each is to be shown its own. Processes are to be spawned, not forked.

    Args:
        executor: whose workers can import this package.
        rows: the slides.
        tiling: grid, tissue, encoder; of tiles, or of their children.
        folder: of all features; each tiling gets its own below it.
        batch: tiles at a time, on each worker.
        reading: threads and buffers of each worker.
        meter: is charged with what workers count, not with their seconds of waiting.
        progress: (what, total) -> a context that gives `advance(n, note)`.
        lost: what a job raises when workers have died of its slide; it is refused.

    Raises:
        WorkerError: a worker lacks the weights or the folder, or has others.
        BrokenExecutor: the executor lost its workers; with a new one it goes on.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    settings, tiling = tiling.fingerprint(), _findable(tiling)
    ask = (tiling, settings, folder, batch, reading)
    there = {row.slide_id: row for row in rows if os.path.exists(row.path)}
    absent = [survey(row, tiling) for row in rows if row.slide_id not in there]
    lines = {line["slide_id"]: line for line in streamed(absent)}
    with progress("slides", len(rows)) as advance, contextlib.ExitStack() as stack:
        submit = lambda row: executor.submit(work, _absolute(row), *ask)
        jobs = {submit(row): row for row in there.values()}
        stack.callback(lambda: [job.cancel() for job in jobs])
        for job in concurrent.futures.as_completed(jobs):
            row = jobs[job]
            try:
                line, cost = job.result()
            except lost as error:
                line, cost = _refused(row, f"{row.slide_id}: {error}"), {}
            lines[row.slide_id] = line | {"path": row.path}
            meter.add(**{n: cost[n] for n in COUNTERS if n in cost and n != "wall_s"})
            advance(1)
        advance(len(absent), before=True)
    return [lines[row.slide_id] for row in rows]


def work(
    row: Row,
    tiling: Tiling,
    settings: str,
    folder: pathlib.Path,
    batch: int,
    reading: Reading,
) -> tuple[dict, dict]:
    """What a worker does with one slide.

    Args:
        row: the slide.
        tiling: as `spread`.
        settings: fingerprint of the tiling where the work was given out.
        folder: as `spread`.
        batch: as `spread`.
        reading: as `spread`.

    Returns:
        What became of the slide, as `slides.csv` has it; what it cost.
    """
    for shared in (folder, pathlib.Path(row.path).parent):
        if not shared.is_dir():
            raise _error(f"no folder {shared}; all machines must see it by this name")
    ready, meter = _ready(tiling, settings), Meter()
    if batch % ready.mesh.size:
        raise _error(
            f"--config.encode_batch={batch} does not divide among {ready.mesh.size} "
            "devices; make it a multiple of them"
        )
    (line,) = extract(
        [row], ready, folder,
        batch=batch, reading=reading, meter=meter, progress=_silent,
    )  # fmt: skip
    return line, meter.as_dict()


_lock = threading.Lock()
_kept: dict[str, Ready] = {}


def _ready(tiling: Tiling, settings: str) -> Ready:
    """The encoder, kept from slide to slide: read, checked and compiled once."""
    with _lock:
        if settings not in _kept:
            try:
                tiling.encoder.check("encoder")
            except ValueError as error:
                raise _error(str(error)) from error
            ready = Ready(tiling, make_mesh())
            if ready.settings != settings:
                raise _error(
                    f"--config.encoder.weights={tiling.encoder.weights} or the version "
                    "of wsi_jax is another than where the command was given"
                )
            _kept.clear()  # of two the weights might not fit
            _kept[settings] = ready
        return _kept[settings]


def _error(text: str) -> WorkerError:
    return WorkerError(f"worker on {socket.gethostname()}: {text}")


def _refused(row: Row, reason: str) -> dict:
    """A line of slides.csv."""
    return streamed([Surveyed(row, np.zeros((0, 2), np.int32), reason=reason)])[0]


def _absolute(row: Row) -> Row:
    """The slide by names that hold in any working folder."""
    paths = {name: getattr(row, name) for name in PATH_COLUMNS}
    paths = {name: os.path.abspath(path) for name, path in paths.items() if path}
    return dataclasses.replace(row, **paths)


def _findable(tiling: Tiling) -> Tiling:
    """The tiling, its weights by a name that holds in any working folder."""
    weights = tiling.encoder.weights
    encoder = dataclasses.replace(
        tiling.encoder, weights=weights and os.path.abspath(weights)
    )
    return dataclasses.replace(tiling, encoder=encoder)


@contextlib.contextmanager
def _silent(what: str, total: int) -> Iterator[Callable]:
    """No progress bar: the driver has it."""
    del what, total
    yield lambda *args, **kwargs: None
