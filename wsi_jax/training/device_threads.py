"""A thread for each device, for work that leaves the device in between."""

import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from wsi_jax.training.mesh import split_over

T = TypeVar("T")


class _AbandonedError(Exception):
    """Another device's work has failed."""


def own_devices(mesh: Mesh) -> list[int]:
    """Places along the mesh of this process's devices."""
    process = jax.process_index()
    return [
        i for i, one in enumerate(mesh.devices.flat) if one.process_index == process
    ]


def on_devices(
    work: Callable[[jax.Device, Callable[[], None]], T], devices: Sequence[jax.Device]
) -> list[T]:
    """What `work(device, check)` gives for each device, all at the same time.

    One device needs no thread. Where one fails its error is raised, and `check()`
    ends the others: to be called often.
    """
    failed, x64 = threading.Event(), jax.config.jax_enable_x64

    def check():
        if failed.is_set():
            raise _AbandonedError

    def run(device):
        # What JAX is told within a block holds for one thread alone.
        with jax.enable_x64(x64), jax.default_device(device):
            try:
                return work(device, check)
            except BaseException:
                failed.set()
                raise

    if len(devices) == 1:
        return [run(devices[0])]
    with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
        tasks = [pool.submit(run, device) for device in devices]
        try:
            concurrent.futures.wait(tasks)
        except BaseException:  # stopped by the user
            failed.set()
            raise
    errors = [task.exception() for task in tasks]
    for error in errors:
        if error and not isinstance(error, _AbandonedError):
            raise error
    return [task.result() for task in tasks]


def on_device(tree: Any, device: jax.Device) -> Any:
    """Arrays that are whole on every device, on one of them."""
    one = lambda a: next(s.data for s in a.addressable_shards if s.device == device)
    return jax.tree.map(one, tree)


def from_devices(trees: Sequence[Any], mesh: Mesh) -> Any:
    """Arrays of all devices, one after another along their first axis; not copied.

    Args:
        trees: arrays on each of this process's devices, of one shape; a number becomes
            a row.
    """

    def one(*parts):
        parts = [a if a.ndim else a[None] for a in parts]
        n, *rest = parts[0].shape
        shape, rows = (mesh.size * n, *rest), split_over(mesh)
        return jax.make_array_from_single_device_arrays(shape, rows, parts)

    return jax.tree.map(one, *trees)
