"""The folder of a practice cohort: what it holds, and making its parts in parallel."""

import concurrent.futures
import contextlib
import dataclasses
import enum
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import logging

from wsi_jax.files import sweep, write_text

CLAIM = "cohort.json"


class MakeCohortError(ValueError):
    """A cohort that cannot be made as asked; the message names the flag."""


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


def claim(out: pathlib.Path, config: Any) -> None:
    """Writes cohort.json, or checks that the folder holds this very cohort.

    Args:
        out: folder of the cohort, made when absent.
        config: dataclass, of which `out` and `workers` decide nothing.

    Raises:
        MakeCohortError: the folder holds another cohort.
    """
    resolved = _plain(dataclasses.asdict(config))
    for name in ("out", "workers"):
        del resolved[name]
    path = out / CLAIM
    if path.is_file():
        before = made_with(out)
        differing = sorted(k for k in resolved if before.get(k) != resolved[k])
        if differing:
            name = differing[0]
            raise MakeCohortError(
                f"{out} holds a cohort with {name}={before.get(name)!r}, asked for is "
                f"{resolved[name]!r}; name another folder with --config.out"
            )
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)
    write_text(path, json.dumps({"config": resolved}, indent=2) + "\n")


def in_parallel(make: Callable, parts: Sequence[Any], workers: int, what: str) -> None:
    """Makes all parts of a cohort; after a failure no other one is begun.

    Args:
        make: one part, in a thread.
        parts: parts of the cohort.
        workers: threads; 0 for one per processor.
        what: they are, for the log.
    """
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        jobs = [pool.submit(make, part) for part in parts]
        try:
            for done, job in enumerate(concurrent.futures.as_completed(jobs), start=1):
                job.result()
                if done % 20 == 0 or done == len(jobs):
                    logging.info("%d of %d %s", done, len(jobs), what)
        finally:
            pool.shutdown(cancel_futures=True)


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, enum.Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value
