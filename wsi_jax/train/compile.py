"""The only place that knows jit, meshes and sharding.

One axis, "data". The state lies whole on every device, a batch is split by slide, and
the gradient's mean over devices is the compiler's.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from wsi_jax.ops.streaming import pass_tile
from wsi_jax.types import Bag, Method


def make_mesh(devices=None) -> Mesh:
    """All devices on one axis, "data", along which batches are split by slide."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def compile_method(method: Method, mesh: Mesh) -> Method:
    """Compiles a Method: state replicated and donated, batches split by slide."""
    everywhere, by_slide = _shardings(mesh)
    return Method(
        init=jax.jit(method.init, out_shardings=everywhere),
        step=jax.jit(
            method.step,
            in_shardings=(everywhere, by_slide),
            out_shardings=everywhere,
            donate_argnums=0,
        ),
        predict=jax.jit(
            method.predict,
            in_shardings=(everywhere, by_slide, everywhere),
            out_shardings=by_slide,
        ),
    )


def compile_encoder(apply, mesh: Mesh):
    """Compiles (params, pixels [b h w 3]) -> features [b d], split by tile."""
    everywhere, by_tile = _shardings(mesh)
    return jax.jit(apply, in_shardings=(everywhere, by_tile), out_shardings=by_tile)


def replicate(tree, mesh: Mesh):
    """Lays a tree of arrays whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


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
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    put = lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a))
    return jax.tree.map(put, batch)


def pad_to(bag: Bag, slides: int) -> Bag:
    """Fills a batch up to `slides` with slides of no tiles and no weight."""
    fill = lambda a: np.pad(a, [(0, slides - len(a))] + [(0, 0)] * (a.ndim - 1))
    return Bag(*map(fill, map(np.asarray, bag)))


def _shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(
        mesh, PartitionSpec("data")
    )


class Phases(NamedTuple):
    """A streamed net's two compiled phases; they serve slides of any size.

    Attributes:
        forward: (params, size, at, rows, columns, tile) -> (rows, columns, cells).
        backward: (grads, params, size, at, rows, columns, tile, cotangents of what
            forward returns) -> (grads, cotangents of rows, of columns). What this tile
            adds to the gradient is added to `grads`, which is donated.
    """

    forward: Callable
    backward: Callable


def compile_stream(net: Callable, axes: tuple[bool, bool]) -> Phases:
    """Compiles the passage of one tile through a net, and the way back."""

    def forward(params, size, at, rows, columns, tile):
        return pass_tile(net, axes, size, params, at, rows, columns, tile)

    def backward(grads, params, size, at, rows, columns, tile, cotangents):
        passage = lambda p, r, c: pass_tile(net, axes, size, p, at, r, c, tile)
        _, back = jax.vjp(passage, params, rows, columns)
        more, rows, columns = back(cotangents)
        return jax.tree.map(jnp.add, grads, more), rows, columns

    return Phases(jax.jit(forward), jax.jit(backward, donate_argnums=0))
