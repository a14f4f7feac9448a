"""Devices on one axis, over which batches are split, and sums over them.

The one place where functions ask which devices they run on.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()
LARGE = 1 << 16  # numbers in an array from which it is worth dividing
_spread = contextvars.ContextVar("spread", default=False)


def make_mesh(devices=None) -> Mesh:
    """Devices of all processes, or some, on one axis along which batches are split.

    The devices of a process stand together, so that its rows of a batch do.
    """
    devices = jax.devices() if devices is None else devices
    order = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(order), (AXIS,), axis_types=(AxisType.Auto,))


def split_over(mesh: Mesh) -> NamedSharding:
    """Arrays split along their first axis."""
    return NamedSharding(mesh, SPLIT)


def whole_on(mesh: Mesh) -> NamedSharding:
    """Arrays whole on every device."""
    return NamedSharding(mesh, WHOLE)


def share(mesh: Mesh) -> dict[str, int]:
    """What of a batch this process loads: `devices`, `process` and `processes`."""
    processes = sorted({device.process_index for device in mesh.devices.flat})
    own = processes.index(jax.process_index())
    return {"devices": mesh.size, "process": own, "processes": len(processes)}


def own_rows(mesh: Mesh, count: int) -> slice:
    """Those of a batch's rows that lie on the devices of this process."""
    part = share(mesh)
    rows = count // part["processes"]
    return slice(part["process"] * rows, (part["process"] + 1) * rows)


def rows_here(tree: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch's arrays, in host memory."""

    def one(array):
        if not isinstance(array, jax.Array) or array.is_fully_replicated:
            return np.asarray(array)[own_rows(mesh, len(array))]
        shards = sorted(array.addressable_shards, key=lambda s: s.index[0].start or 0)
        return np.concatenate(jax.device_get([shard.data for shard in shards]))

    return jax.tree.map(one, tree)


def on_local_devices(tree: Any, mesh: Mesh) -> Any:
    """Arrays that are whole on every device, for programs of this process alone."""
    local = mesh.local_mesh
    if local.size == mesh.size:
        return tree
    parts = lambda a: [shard.data for shard in a.addressable_shards]
    here = lambda a: jax.make_array_from_single_device_arrays(
        a.shape, whole_on(local), parts(a)
    )
    return jax.tree.map(here, tree)


@contextlib.contextmanager
def traced_for(mesh: Mesh, spread: bool = False) -> Iterator[None]:
    """Within the block, what is traced is for these devices.

    Args:
        spread: whether `spread_over_devices` divides arrays among them.
    """
    before = _spread.set(spread)
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            yield
    finally:
        _spread.reset(before)


def spread_over_devices(tree: Any) -> Any:
    """A tree whose large arrays are divided among devices, where that is asked for.

    Each is divided along its longest axis that the devices divide; each device then
    updates its own part of an optimiser's state, and holds no other (ZeRO, stage 1;
    Rajbhandari et al. 2020).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _spread.get() or mesh.empty or mesh.size == 1:
        return tree
    part = lambda a: jax.lax.with_sharding_constraint(a, divided(a.shape, mesh.size))
    return jax.tree.map(part, tree)


def divided(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    """How an array is divided among devices; small ones are not."""
    axes = [axis for axis, n in enumerate(shape) if n % devices == 0]
    if math.prod(shape) < LARGE or not axes:
        return WHOLE
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, AXIS)


def on_each_device(function: Callable, same: Any, split: Any) -> Any:
    """`function(same, split, total)` on every device, for its rows of a batch.

    Outside `traced_for`, or on one device, it is called once, for all rows.

    Args:
        function: `total(tree)` gives the sums of a tree's arrays over devices; what it
            returns must be the same on all.
        same: is whole on every device.
        split: arrays, of whose rows each device has some.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(same, split, lambda tree: tree)
    total = lambda tree: jax.lax.psum(tree, AXIS)
    # Unchecked: else gradients are summed over devices wherever a parameter is used,
    # loops included, and not once.
    return jax.shard_map(
        lambda same, split: function(same, split, total),
        in_specs=(WHOLE, SPLIT), out_specs=WHOLE, check_vma=False,
    )(same, split)  # fmt: skip
