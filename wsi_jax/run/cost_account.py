"""What a run costs, kept in its folder across processes."""

import contextlib
import pathlib
from collections.abc import Iterator

import jax

from wsi_jax.evals.cost_meter import Meter
from wsi_jax.run.interrupts import Stopped
from wsi_jax.run.run_folder import write_json


@contextlib.contextmanager
def open_account(path: pathlib.Path) -> Iterator[Meter]:
    """A meter that goes on from the journal beside `path`.

    Its seconds are saved when the block ends; after a signal, the whole account.

    Args:
        path: JSON file of the account, as `write_account` writes it.
    """
    meter = Meter(device_bytes=device_bytes, journal=path.with_suffix(".jsonl"))
    try:
        yield meter
    except Stopped:
        write_account(path, meter)
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk has its own message by now
            meter.save()


def write_account(path: pathlib.Path, meter: Meter) -> None:
    """Writes what a meter has counted so far."""
    write_json(path, meter.as_dict())


def device_bytes() -> int | None:
    """Peak bytes on the busiest device; None where it does not say."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return max(peaks, default=None)
