"""Features made by many workers: any `concurrent.futures` executor, of any machines.

A slide is a unit of work. Its feature file is whole or absent and two workers write the
same one, so a unit may be run again, or twice at once, and nothing is lost or doubled.

With each slide a worker, early or late, is given a `Terms`: it shows that it runs the
same code and sees the same folder and slide, or stops the run. The one that gave the
work out then looks for the file that it was told of.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wsi_jax.data.cohort import PATH_COLUMNS, Row
from wsi_jax.data.features import FeatureError, feature_shape
from wsi_jax.data.tiles import Reading
from wsi_jax.evals.cost import WORK, Meter
from wsi_jax.provenance import code
from wsi_jax.run.extract import Ready, extract, streamed
from wsi_jax.run.tiling import TiledSlide, Tiling, tile_slide
from wsi_jax.training.compile import make_mesh

VISIBLE_S = 10.0  # network file systems remember for a while what was not there


class WorkerError(ValueError):
    """A worker cannot do what it is asked to; the message names it and the mend."""


class Terms(NamedTuple):
    """What a worker must have in common with the process that gives work out.

    Attributes:
        folder: of all features.
        token: name of a file in it.
        secret: that the file holds.
        code: of the process, as `provenance.code`.
    """

    folder: pathlib.Path
    token: str
    secret: str
    code: Mapping[str, str]

    def check(self, path: str, size: int) -> None:
        """Raises WorkerError where this process has other code, folders or slides.

        Args:
            path: of a slide.
            size: of it in bytes, as the process that gives work out sees it.
        """
        here, wanted = code(), self.code
        if others := [name for name in wanted if here.get(name) != wanted[name]]:
            listed = [f"{n} {here.get(n)} there, {wanted[n]} here" for n in others]
            raise _error(
                f"other code than where the command was given ({', '.join(listed)}); "
                "install the same versions on both and start the worker again"
            )
        for shared in (self.folder, pathlib.Path(path).parent):
            if not shared.is_dir():
                raise _error(
                    f"no folder {shared}; all machines must see it by this name"
                )
        token = self.folder / self.token
        if not token.is_file() or token.read_text() != self.secret:
            raise _error(
                f"{self.folder} is another folder there than where the command was "
                "given; mount the same one on all machines by this name"
            )
        if not os.access(path, os.R_OK) or size_of(path) != size:
            raise _error(
                f"{path} cannot be read there, or is another slide than where the "
                "command was given; mount the same folder on all machines by this name"
            )


def size_of(path: str) -> int:
    """Of a slide's file, in bytes; 0 of a folder."""
    return 0 if os.path.isdir(path) else os.path.getsize(path)


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
        WorkerError: a worker lacks the weights or the folder, has others, runs other
            code, or sees other slides.
        BrokenExecutor: the executor lost its workers; with a new one it goes on.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    settings, made = tiling.fingerprint(), folder / tiling.folder()
    tiling = _findable(tiling)
    there = {row.slide_id: row for row in rows if os.path.exists(row.path)}
    absent = [tile_slide(row, tiling) for row in rows if row.slide_id not in there]
    lines = {line["slide_id"]: line for line in streamed(absent)}
    with (
        terms(folder) as common,
        progress("slides", len(rows)) as advance,
        contextlib.ExitStack() as stack,
    ):
        ask = (tiling, settings, common, batch, reading)
        submit = lambda row: executor.submit(
            work, _absolute(row), size_of(row.path), *ask
        )
        jobs = {submit(row): row for row in there.values()}
        stack.callback(lambda: [job.cancel() for job in jobs])
        for job in concurrent.futures.as_completed(jobs):
            row = jobs[job]
            try:
                line, cost = job.result()
            except lost as error:
                line, cost = _refused(row, f"{row.slide_id}: {error}"), {}
            except (ImportError, AttributeError) as error:
                check_loaded(error)
                raise
            if line["status"] != "refused":
                line = _seen(line, made / f"{row.slide_id}.h5")
            line.pop("host", None)
            lines[row.slide_id] = line | {"path": row.path}
            meter.add(device_s=cost.get("device_s", 0))
            if done := {name: cost[name] for name in WORK if cost.get(name)}:
                unit = f"{tiling.folder()}/{row.slide_id}"
                meter.begin(unit)
                meter.enter(unit, **done)
            advance(1)
        advance(len(absent), before=True)
    return [lines[row.slide_id] for row in rows]


def work(
    row: Row,
    size: int,
    tiling: Tiling,
    settings: str,
    terms: Terms,
    batch: int,
    reading: Reading,
) -> tuple[dict, dict]:
    """What a worker does with one slide.

    Args:
        row: the slide.
        size: of its file, as `size_of` where the work was given out.
        tiling: as `spread`.
        settings: fingerprint of the tiling where the work was given out.
        terms: the worker's, or it does nothing.
        batch: as `spread`.
        reading: as `spread`.

    Returns:
        What became of the slide, as `slides.csv` has it; what it cost.

    Raises:
        WorkerError: the worker cannot make what would be made where the work was given
            out, naming its host and the mend.
    """
    terms.check(row.path, size)
    ready, meter = _ready(tiling, settings), Meter()
    if batch % ready.mesh.size:
        raise _error(
            f"--config.encode_batch={batch} does not divide among {ready.mesh.size} "
            "devices; make it a multiple of them"
        )
    (line,) = extract(
        [row], ready, terms.folder,
        batch=batch, reading=reading, meter=meter, progress=_silent,
    )  # fmt: skip
    return line | {"host": socket.gethostname()}, meter.as_dict()


@contextlib.contextmanager
def terms(folder: pathlib.Path) -> Iterator[Terms]:
    """Terms with a token in the folder, which is removed in the end."""
    made = Terms(folder, f".{secrets.token_hex(8)}.token", secrets.token_hex(), code())
    token = folder / made.token
    try:
        token.write_text(made.secret)
        yield made
    finally:
        token.unlink(missing_ok=True)


def _seen(line: dict, path: pathlib.Path) -> dict:
    """The line of a slide, refused where its feature file is not to be had here."""
    until = time.monotonic() + VISIBLE_S
    while True:
        try:
            feature_shape(path)
            return line
        except FeatureError as error:
            if time.monotonic() > until:
                reason = (
                    f"{line['slide_id']}: a worker on {line['host']} has made {path}, "
                    f"and here it cannot be read ({error}); see that both have one "
                    "folder by this name, and give the same command again"
                )
                return line | {"status": "refused", "reason": reason}
            with contextlib.suppress(OSError):
                os.listdir(path.parent)  # makes a network's file system look again
            time.sleep(0.2)


def check_loaded(error: Exception) -> None:
    """Raises WorkerError where a worker could not even load this module."""
    if isinstance(error, ImportError) or "Can't get attribute" in str(error):
        raise WorkerError(
            f"a worker cannot load wsi_jax as it is here ({error}); install the same "
            "wsi_jax for all workers and start them again"
        ) from error


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
                    f"--config.encoder.weights={tiling.encoder.weights} is another "
                    "file than where the command was given"
                )
            _kept.clear()  # of two the weights might not fit
            _kept[settings] = ready
        return _kept[settings]


def _error(text: str) -> WorkerError:
    return WorkerError(f"worker on {socket.gethostname()}: {text}")


def _refused(row: Row, reason: str) -> dict:
    """A line of slides.csv."""
    return streamed([TiledSlide(row, np.zeros((0, 2), np.int32), reason=reason)])[0]


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
