"""A worker's part in extraction: checks that it shares code and files, one slide each.

A worker may come late, from another machine. With each slide it gets a `WorkerCheck`,
by which it shows that it runs the same code and sees the same folder and slide, or
stops the run.
"""

import contextlib
import os
import pathlib
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from wsi_jax.data.cohort import Row
from wsi_jax.data.tile_batches import Reading
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.provenance import code
from wsi_jax.run.executor import WorkerError
from wsi_jax.run.extract.slide_features import Extractor, extract, find_tiles
from wsi_jax.run.progress import silent
from wsi_jax.run.slide_record import SlideRecord
from wsi_jax.run.tiling import Tiling
from wsi_jax.slides.file_faults import reads_file, set_hang_s
from wsi_jax.training.mesh import make_mesh


class WorkerCheck(NamedTuple):
    """What a worker must share with the process that gives out the work, the driver.

    Attributes:
        folder: folder of all features.
        token: name of a file in it.
        secret: content of that file.
        code: versions of the driver, as `provenance.code`.
    """

    folder: pathlib.Path
    token: str
    secret: str
    code: Mapping[str, str]

    def check(self, path: str, size: int) -> None:
        """Raises WorkerError where this process has other code, folders or slides.

        Args:
            path: path of a slide.
            size: its bytes, as the driver sees it.
        """
        here, expected = code(), self.code
        if others := [name for name in expected if here.get(name) != expected[name]]:
            listed = [f"{n} {here.get(n)} there, {expected[n]} here" for n in others]
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
        if not os.access(path, os.R_OK) or file_size(path) != size:
            raise _error(
                f"{path} cannot be read there, or is another slide than where the "
                "command was given; mount the same folder on all machines by this name"
            )


class WorkerResult(NamedTuple):
    """A slide's record without pixels and tiles, the worker's account, its machine."""

    record: SlideRecord
    cost: dict
    host: str


@contextlib.contextmanager
def worker_check(folder: pathlib.Path) -> Iterator[WorkerCheck]:
    """The check of all workers; its token lies in the folder within the block."""
    check = WorkerCheck(
        folder, f".{secrets.token_hex(8)}.token", secrets.token_hex(), code()
    )
    token = folder / check.token
    try:
        token.write_text(check.secret)
        yield check
    finally:
        token.unlink(missing_ok=True)


@reads_file
def file_size(path: str) -> int:
    """Bytes of a slide's file; 0 of a folder."""
    return 0 if os.path.isdir(path) else os.path.getsize(path)


def extract_slide(
    row: Row,
    size: int,
    tiling: Tiling,
    settings: str,
    check: WorkerCheck,
    batch: int,
    reading: Reading,
) -> WorkerResult:
    """Finds the tiles of one slide and writes their features: a worker's job.

    Arguments are those of `extract_distributed`, the bytes of the slide's file, the
    tiling's fingerprint as the driver has it, and what both must share.

    Raises:
        WorkerError: the worker cannot make what the driver would make; the message
            names its host and the mend.
    """
    set_hang_s(reading.hang_s)
    check.check(row.path, size)
    extractor, meter = _extractor(tiling, settings), Meter()
    devices = extractor.encoder.mesh.size
    if batch % devices:
        raise _error(
            f"--config.encode_batch={batch} does not divide among {devices} "
            "devices; make it a multiple of them"
        )
    options = {"reading": reading, "meter": meter, "progress": silent}
    (record,) = records = find_tiles([row], tiling, "encoded", **options)
    extract(records, extractor, check.folder, batch=batch, **options)
    record.slide = record.slide._replace(yx=record.slide.yx[:0], picture=None)
    return WorkerResult(record, meter.as_dict(), socket.gethostname())


_lock = threading.Lock()
_extractors: dict[str, Extractor] = {}


def _extractor(tiling: Tiling, settings: str) -> Extractor:
    """The encoder, kept from slide to slide: read, checked and compiled once."""
    with _lock:
        if settings not in _extractors:
            try:
                tiling.encoder.check("encoder")
            except ValueError as error:
                raise _error(str(error)) from error
            extractor = Extractor(tiling, make_mesh())
            if extractor.settings != settings:
                raise _error(
                    f"--config.encoder.weights={tiling.encoder.weights} is another "
                    "file than where the command was given"
                )
            _extractors.clear()  # the weights of two might not fit
            _extractors[settings] = extractor
        return _extractors[settings]


def _error(text: str) -> WorkerError:
    return WorkerError(f"worker on {socket.gethostname()}: {text}")
