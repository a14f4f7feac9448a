"""What makers of practice cohorts share: a folder, its claim, parts in parallel."""

import concurrent.futures
import contextlib
import dataclasses
import enum
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from experiments.phantoms.texture_sources import Folder, Textures, TileSource
from wsi_jax import config_fields
from wsi_jax.commands.config_command_line import errors_in_one_line
from wsi_jax.files import replacing, sweep, write_text

CLAIM = "cohort.json"


class MakeCohortError(ValueError):
    """A cohort that cannot be made as asked; the message names the flag."""


@dataclasses.dataclass(kw_only=True)
class Maker:
    """What is made in a folder, part by part.

    Attributes:
        out: folder to write, made when absent.
        workers: parts made at once; 0 for one per processor.
    """

    out: str = ""
    workers: int = 0

    def checked(self) -> pathlib.Path:
        """The folder.

        Raises:
            MakeCohortError: none is named.
            ValueError: a number that makes no sense.
        """
        if not self.out:
            raise MakeCohortError("no folder to write to; add --config.out=FOLDER")
        config_fields.validate(self)
        return pathlib.Path(self.out)

    def claim(self) -> None:
        """Writes cohort.json, or checks that the folder holds this very cohort.

        Raises:
            MakeCohortError: the folder holds another one.
        """
        out, resolved = pathlib.Path(self.out), _plain(dataclasses.asdict(self))
        for name in ("out", "workers"):  # they decide nothing
            del resolved[name]
        if (out / CLAIM).is_file():
            before = made_with(out)
            differing = sorted(k for k in resolved if before.get(k) != resolved[k])
            if differing:
                name = differing[0]
                raise MakeCohortError(
                    f"{out} holds a cohort with {name}={before.get(name)!r}, asked for "
                    f"is {resolved[name]!r}; name another folder with --config.out"
                )
        out.mkdir(parents=True, exist_ok=True)
        sweep(out)
        write_text(out / CLAIM, json.dumps({"config": resolved}, indent=2) + "\n")

    def in_parallel(self, make: Callable, parts: Sequence[Any], what: str) -> None:
        """Makes all parts, which are `what`; after a failure no other one is begun."""
        with concurrent.futures.ThreadPoolExecutor(
            self.workers or os.cpu_count()
        ) as pool:
            jobs = [pool.submit(make, part) for part in parts]
            try:
                done = concurrent.futures.as_completed(jobs)
                for n, job in enumerate(done, start=1):
                    job.result()
                    if n % 20 == 0 or n == len(jobs):
                        logging.info("%d of %d %s", n, len(jobs), what)
            finally:
                pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(kw_only=True)
class TileMaker(Maker):
    """What is put together from tiles, real or drawn ones.

    Attributes:
        tiles: folder of real tiles with an index.csv; "" for drawn textures.
        kinds: classes of that index.csv, the normal tissue first.
        mpp: micrometres per pixel of the tiles. LC25000 has about 1.
        styles: styles of each kind of drawn texture, a third of a second each.
    """

    tiles: str = ""
    kinds: tuple[str, ...] = ()
    mpp: float = 1.0
    styles: int = 100

    def source(self) -> TileSource:
        """The tiles."""
        if self.tiles:
            return Folder(self.tiles, self.kinds, self.mpp)
        return Textures(self.mpp, self.styles)


def command(make: Callable[[Any], pathlib.Path]) -> Callable[[Any, str], None]:
    """`make(config)` as a command: it prints the path; an error is one message."""

    def main(config, name):
        del name
        with errors_in_one_line(config.out):
            print(make(config))

    return main


def write_image(path: pathlib.Path, pixels: np.ndarray) -> None:
    """Writes an image in the format of its name, whole; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".tif": "tiff", ".png": "png"}[path.suffix]
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, kind)


def made_with(folder: str | os.PathLike) -> dict:
    """The config of a cohort on disk, as plain JSON.

    Raises:
        MakeCohortError: no cohort there.
    """
    path = pathlib.Path(folder) / CLAIM
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (FileNotFoundError, NotADirectoryError):
        raise MakeCohortError(
            f"{path}: no such file; name a folder that "
            "experiments.phantoms.make_cohort wrote"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise MakeCohortError(
            f"{path}: damaged ({error}); make the cohort anew in another folder"
        ) from None


@contextlib.contextmanager
def practising() -> Iterator[None]:
    """Within the block errors name the flags of a run that draws its own cohort.

    Those of `make_cohort` are fields of its `data.practice`, and the folder is its
    `data.root`.
    """
    try:
        yield
    except ValueError as error:
        message = str(error).replace("--config.", "--config.data.practice.")
        message = message.replace("--config.data.practice.out", "--config.data.root")
        raise MakeCohortError(message) from error


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, enum.Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value
