"""Several processes that train together: how they meet, and what they tell each other.

Each runs the same command; together they run one program on the devices of all. What
one process must know of the others goes through here.
"""

import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from wsi_jax.config_fields import FieldError

# What schedulers tell each process that they have started of the number of them.
SCHEDULERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
PATIENCE_MS = 24 * 3600 * 1000  # for slides are of many sizes


@dataclasses.dataclass(kw_only=True)
class Cluster:
    """The processes of a run. Left as it is, SLURM, Open MPI and TPU pods are asked.

    Attributes:
        coordinator: HOST:PORT at which process 0 waits for the others.
        processes: how many there are; 0 asks the scheduler, 1 is this one alone.
        process: which of them this is, from 0.
        wait_s: seconds in which all must have begun.
        patience_s: seconds without a sign of life from a process until the others end.
        spread: divide the optimiser's state, and a frozen encoder's weights, among
            devices, where each has no room for all of them.
    """

    coordinator: str = ""
    processes: int = 0
    process: int = 0
    wait_s: int = 300
    patience_s: int = 30
    spread: bool = False

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        "processes": (0, 1 << 20),
        "process": (0, 1 << 20),
        "wait_s": (1, 86400),
        "patience_s": (10, 3600),
    }

    def validate(self) -> None:
        """Refuses half an address, and a process that there is not."""
        if bool(self.coordinator) != (self.processes > 1):
            missing = "processes" if self.coordinator else "coordinator"
            raise FieldError(missing, "coordinator and processes are given together")
        if self.processes and self.process >= self.processes:
            raise FieldError("process", f"below processes={self.processes}")

    def join(self) -> None:
        """Waits for the other processes, if there are any; before JAX is used.

        Raises:
            ValueError: they do not come.
        """
        given = {}
        if self.coordinator:
            given = {
                "coordinator_address": self.coordinator,
                "num_processes": self.processes,
                "process_id": self.process,
            }
        elif self.processes or not _scheduled():
            return
        if jax.distributed.is_initialized():
            return
        # It would take SIGTERM for itself, which stops a run in order.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(
                **given,
                initialization_timeout=self.wait_s,
                heartbeat_timeout_seconds=self.patience_s,
                shutdown_timeout_seconds=self.patience_s,
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"the processes do not find each other ({_first_line(error)}); give "
                "--config.cluster.coordinator=HOST:PORT, --config.cluster.processes "
                "and --config.cluster.process to each, or --config.cluster.processes=1 "
                "to a run by itself"
            ) from error


def is_first() -> bool:
    """Whether this process writes files and speaks for all."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def own_part(items: Sequence) -> Sequence:
    """Every n-th item: those that this process deals with."""
    return items[jax.process_index() :: jax.process_count()]


def first_does(action: Callable[[], Any]) -> None:
    """Process 0 does something, and the others wait for it.

    Raises:
        Exception: what process 0 has raised; in the others a ValueError.
    """
    error = None
    if is_first():
        try:
            action()
        except Exception as raised:
            error = raised
    failure, *_ = exchange_json(error and f"process 0: {error}")
    if error:
        raise error
    if failure:
        raise ValueError(failure)


def check_alike(**facts: Any) -> None:
    """Checks that all processes have found the same.

    Args:
        facts: fit for JSON; their names are for the message.

    Raises:
        ValueError: naming the first process that has not, and what.
    """
    first, *others = exchange_json(facts)
    for process, other in enumerate(others, 1):
        for name, value in first.items():
            if other[name] != value:
                raise ValueError(
                    f"process {process} has another {name} than process 0: give the "
                    "same command to all, on machines with the same files, number of "
                    "devices and version"
                )


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """Within the block nothing is printed but by process 0, which speaks for all."""
    if is_first():
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Within the block, where a process fails it ends at once, and the others too.

    Python would first wait for the others, who wait for it.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if not jax.distributed.is_initialized() or not several():
            raise
        sys.stdout.flush()
        code = error.code if isinstance(error, SystemExit) else 1
        if isinstance(error, jax.errors.JaxRuntimeError):
            error = (
                f"another one of {jax.process_count()} processes has ended, or this "
                f"one's devices have failed ({_first_line(error)}); mend what that one "
                "says and give the same command to all again: it goes on"
            )
        elif isinstance(error, SystemExit) and not isinstance(error.code, int):
            error, code = error.code, 1
        print(f"process {jax.process_index()}: {error}", file=sys.stderr, flush=True)
        os._exit(code)


def meet(place: str) -> None:
    """Waits until all processes are here, for hours; `place` is the same in all.

    What all devices compute together waits for others too, but of CPUs for 30 s alone.
    """
    if several():
        multihost.get_barrier_sync_fn()(key=place, timeout_ms=PATIENCE_MS)


def gather(tree: Any) -> Any:
    """Arrays of all devices, whole, in host memory of every process.

    Args:
        tree: of arrays that are split over devices along the first axis, or whole.
    """
    if not several():
        return jax.device_get(tree)
    meet("gather")
    whole = lambda a: (
        np.asarray(a)
        if not isinstance(a, jax.Array) or a.is_fully_replicated
        else multihost_utils.process_allgather(a, tiled=True)
    )
    return jax.tree.map(whole, tree)


def agree(any_of: bool) -> bool:
    """Whether it is so in any process; the same in all."""
    if not several():
        return any_of
    meet("agree")
    return bool(multihost_utils.process_allgather(np.array(any_of)).any())


def exchange(own: bytes) -> list[bytes]:
    """What each process gives, in all of them, in order."""
    if not several():
        return [own]
    meet("exchange")  # one may have come long before another
    sizes = multihost_utils.process_allgather(np.array(len(own)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(own)] = np.frombuffer(own, np.uint8)
    each = multihost_utils.process_allgather(padded)
    return [row[:n].tobytes() for row, n in zip(each, sizes.tolist(), strict=True)]


def exchange_json(own: Any) -> list[Any]:
    """What each process gives, fit for JSON, in all of them, in order."""
    if not several():
        return [own]
    return [json.loads(part) for part in exchange(json.dumps(own).encode())]


def add_up(counts: Mapping[str, int | float]) -> dict[str, int | float]:
    """The counts of all processes, added."""
    parts = exchange_json(dict(counts))
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0) for part in parts) for name in names}


def exchange_arrays(own: Sequence[Mapping[str, Any]]) -> list[list[dict]]:
    """Dicts of arrays that each process gives, in all of them, by process."""
    file = io.BytesIO()
    named = {f"{i}.{name}": a for i, one in enumerate(own) for name, a in one.items()}
    np.savez(file, count=len(own), **named)
    return [_unpacked(part) for part in exchange(file.getvalue())]


def _unpacked(part: bytes) -> list[dict]:
    with np.load(io.BytesIO(part), allow_pickle=False) as arrays:
        dicts = [{} for _ in range(int(arrays["count"]))]
        for key in arrays.files:
            number, _, name = key.partition(".")
            if name:
                dicts[int(number)][name] = arrays[key]
        return dicts


def _scheduled() -> bool:
    """Whether a scheduler has started several processes."""
    counts = (os.environ.get(name, "1") for name in SCHEDULERS)
    if any(count.isdigit() and int(count) > 1 for count in counts):
        return True
    # A TPU pod's hosts, as its virtual machines are told.
    return len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
