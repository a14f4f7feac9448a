"""What a run costs, kept in its folder across processes."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import jax

from wsi_jax.evals.cost_meter import Meter
from wsi_jax.files import AnyPath
from wsi_jax.run.interrupts import Stopped
from wsi_jax.run.run_folder import write_json
from wsi_jax.training.flops import executed
from wsi_jax.training.processes import add_up, is_first


@contextlib.contextmanager
def open_account(path: AnyPath) -> Iterator[Meter]:
    """A meter that goes on from the journal beside `path`.

    Its seconds are saved when the block ends; after a signal, the whole account. Of
    several processes the first has it.

    Args:
        path: JSON file of the account, as `write_account` writes it.
    """
    if not is_first():
        yield Meter()
        return
    meter = Meter(device_bytes=device_bytes, journal=path.with_suffix(".jsonl"))
    try:
        yield meter
    except Stopped:
        write_account(path, meter)
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk has its own message by now
            meter.save()


def write_account(path: AnyPath, meter: Meter) -> None:
    """Writes what a meter has counted so far."""
    write_json(path, meter.as_dict())


def device_bytes() -> int | None:
    """Peak bytes on the busiest device; None where it does not say."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return max(peaks, default=None)


class StepAccount:
    """The work of a stage, step by step; a later process goes on from a checkpoint's.

    Args:
        meter: is charged.
        unit: name in the meter's account; by it the work goes on after a kill.
        work: what this process has done so far, as in `evals.cost_meter.WORK`.
    """

    def __init__(
        self,
        meter: Meter,
        unit: str,
        work: Callable[[], Mapping[str, int | float]] = executed,
    ):
        self._meter, self._unit, self._work = meter, unit, work
        self._step, self._before = 0, {}

    def begin(self, step: int, done: Mapping[str, int | float]) -> None:
        """Begins at a checkpoint's step, with the work that it remembers."""
        self._step, self._before = step, self._work()
        self._meter.begin(self._unit, **done)

    def record(self, step: int) -> None:
        """Enters what all processes have done since it was last called, in all."""
        now, before = self._work(), self._before
        spent = add_up({name: now[name] - before.get(name, 0) for name in now})
        self._meter.record(self._unit, steps=step - self._step, **spent)
        self._step, self._before = step, now

    def total(self) -> Mapping[str, int | float]:
        """The work so far, of earlier processes too."""
        return self._meter.unit(self._unit)

    def add_device_s(self, seconds: float) -> None:
        """Adds seconds in which the device was at work."""
        self._meter.add(device_s=seconds)
