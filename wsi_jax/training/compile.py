"""What compiles functions, beside `training.phases`, and how arrays lie on devices.

The state lies whole on every device and a batch is split by slide; gradients are summed
over devices by `mesh.on_each_device`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from wsi_jax.training.checkpoint import is_key
from wsi_jax.training.flops import Counted
from wsi_jax.training.mesh import (
    WHOLE,
    divided,
    share,
    split_over,
    traced_for,
    whole_on,
)
from wsi_jax.types import Compiled, Method, TrainState


def compile_method(
    method: Method, mesh: Mesh, read: Callable | None = None, spread: bool = False
) -> Compiled:
    """Compiles a Method: state whole on every device and donated, batches split.

    Args:
        read: reads crops, for a method with a driver; as `Method.driver`.
        spread: whether the optimiser's state is divided among the devices.
    """
    if method.driver:
        return method.driver(read, mesh, spread)
    state, by_slide = state_shardings(mesh, spread), split_over(mesh)
    traced = functools.partial(_traced, mesh=mesh, spread=spread)
    return Method(
        init=jax.jit(traced(method.init), out_shardings=state),
        step=Counted(
            jax.jit(
                traced(method.step),
                in_shardings=(state, by_slide),
                out_shardings=(state, whole_on(mesh)),
                donate_argnums=0,
            ),
            processes=share(mesh)["processes"],
        ),
        predict=compile_each(method.predict, mesh),
    )


def compile_each(function: Callable, mesh: Mesh) -> Callable:
    """Compiles (params, batch, key) -> arrays of each slide, split by slide."""
    everywhere, by_slide = whole_on(mesh), split_over(mesh)
    compiled = jax.jit(
        function,
        in_shardings=(everywhere, by_slide, everywhere),
        out_shardings=by_slide,
    )
    return Counted(compiled, processes=share(mesh)["processes"])


def compile_phase(
    function: Callable,
    donate: tuple[int, ...] = (),
    static: tuple[str, ...] = (),
    out: Any = None,
    mesh: Mesh | None = None,
    spread: bool = False,
) -> Callable:
    """Compiles one phase of a method that leaves the device in between.

    Args:
        out: how its results lie on devices; None leaves it to the arguments.
        mesh: devices of all that call it; None where each process does by itself.
        spread: whether the optimiser's state is divided among them.
    """
    if mesh is not None:
        function = _traced(function, mesh, spread)
    compiled = jax.jit(
        function, donate_argnums=donate, static_argnames=static, out_shardings=out
    )
    return Counted(compiled, processes=share(mesh)["processes"] if mesh else 1)


def compile_encoder(apply, mesh: Mesh):
    """Compiles (params, pixels [b h w 3]) -> features [b d], split by tile.

    The parameters are used where they lie: whole on every device, or divided.
    """
    by_tile = split_over(mesh)
    return jax.jit(apply, in_shardings=(None, by_tile), out_shardings=by_tile)


def replicate(tree, mesh: Mesh, spread: bool = False):
    """Lays a tree of arrays and keys whole on every device.

    Args:
        spread: divide large arrays among the devices instead.
    """
    alone = share(mesh)["processes"] == 1

    def put(leaf):
        if not alone and is_key(leaf):  # devices of others are given arrays only
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        part = divided(leaf.shape, mesh.size) if spread else WHOLE
        if not alone and is_local(leaf):
            leaf = np.asarray(leaf)  # other processes have one of their own
        return jax.device_put(leaf, NamedSharding(mesh, part))

    return jax.tree.map(put, tree)


def is_local(leaf) -> bool:
    """Whether an array lies on devices of this process alone."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def split(batch, mesh: Mesh):
    """Lays a batch of this process over the devices, along the first axis.

    Raises:
        ValueError: the batch does not divide among the devices.
    """
    local = mesh.local_mesh.size
    for array in jax.tree.leaves(batch):
        if len(array) % local:
            raise ValueError(
                f"a batch of {len(array)} does not divide among {local} devices; "
                "make the batch a multiple of them"
            )
    put = lambda a: jax.make_array_from_process_local_data(
        split_over(mesh), np.asarray(a)
    )
    return jax.tree.map(put, batch)


def state_shardings(mesh: Mesh, spread: bool) -> Any:
    """How a state lies: whole on every device, but for what of it is spread."""
    whole = whole_on(mesh)
    return TrainState(whole, whole, None, whole) if spread else whole


def _traced(function: Callable, mesh: Mesh, spread: bool) -> Callable:
    """The function, traced for these devices."""

    def traced(*args, **kwargs):
        with traced_for(mesh, spread):
            return function(*args, **kwargs)

    return traced
