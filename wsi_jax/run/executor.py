"""What extracts features: threads of this process, or the workers of a cluster."""

import concurrent.futures
import contextlib
import enum
import sys
from collections.abc import Iterator

TIMEOUT_S = 10


class WorkerError(ValueError):
    """A worker cannot do what it is asked to; the message names it and the mend."""


class Executor(enum.Enum):
    """threads: of this process, all slides through shared batches.
    dask: workers of a dask.distributed cluster, on any machines; a slide at a time.
    """

    threads = "threads"
    dask = "dask"


@contextlib.contextmanager
def dask(scheduler: str) -> Iterator[tuple[concurrent.futures.Executor, type]]:
    """The workers of a Dask cluster as an executor, and the error of a lost job.

    The scheduler runs whatever it is sent, whoever sends it: let it be reached from a
    private network only, or over TLS.

    Dask gives the job of a worker that died to another; a job of which four have died
    raises the error.

    Args:
        scheduler: address of the scheduler.

    Raises:
        WorkerError: Dask is not installed, or no scheduler answers, or not any more.
    """
    try:
        import distributed
    except ImportError:
        raise WorkerError(
            "--config.executor=dask needs dask.distributed: pip install 'wsi_jax[dask]'"
        ) from None
    flag = f"--config.scheduler={scheduler}"
    try:
        client = distributed.Client(scheduler, timeout=TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise WorkerError(
            f"{flag}: no scheduler answers; start one with `dask scheduler` and its "
            f"workers with `dask worker {scheduler or 'ADDRESS'}`"
        ) from error
    except TypeError as error:  # what Dask raises where tls:// has no certificates
        raise WorkerError(f"{flag}: {error}; set distributed.comm.tls") from error
    with client:
        if not client.nthreads():
            print(f"{flag} has no workers yet; waiting for one", file=sys.stderr)
        try:
            yield client.get_executor(pure=False), distributed.KilledWorker
        except concurrent.futures.CancelledError:
            raise WorkerError(
                f"{flag} went away; start it again and give the same command: it goes "
                "on from where it was"
            ) from None
