"""The only place that compiles: functions, and how their arrays lie on devices.

The state lies whole on every device and a batch is split by slide; gradients are summed
over devices by `mesh.on_each_device`.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from wsi_jax.ops.stream_plan import Net, StreamPlan, packed_tile
from wsi_jax.ops.stream_tile import TissueMask
from wsi_jax.ops.streaming import stream_one_tile
from wsi_jax.training.checkpoint import is_key
from wsi_jax.training.flops import Counted, count_flops
from wsi_jax.training.mesh import (
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

    A precompiled one is returned as it is.

    Args:
        read: reads crops, for a method with a driver; as `Method.driver`.
        spread: whether the optimiser's state is divided among the devices.
    """
    if method.driver:
        return method.driver(read, mesh, spread)
    if method.precompiled:
        return method
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
    whole = whole_on(mesh)

    def put(leaf):
        if spread:
            own = NamedSharding(mesh, divided(leaf.shape, mesh.size))
            return jax.device_put(leaf, own)
        if not is_key(leaf):
            return jax.device_put(leaf, whole)
        # Devices of other processes are given arrays, but no keys.
        data = jax.device_put(np.asarray(jax.random.key_data(leaf)), whole)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

    return jax.tree.map(put, tree)


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


class Phases:
    """Forward and backward pass of a batch of tiles through a streamed net, compiled.

    Each is compiled once, when it is first needed, and serves slides of any size; a
    tile of another shape is refused.

    Args:
        tissue_px: side of the cells of tissue beyond which windows read zeros; 0 for
            the net's own map.
    """

    def __init__(self, net: Net, plan: StreamPlan, params: Any, tissue_px: int = 0):
        index = jax.ShapeDtypeStruct((plan.batch,), jnp.int32)
        like = lambda tree: jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), tree
        )
        tissue = None
        if tissue_px:
            mask = TissueMask(np.ones((1, 1), bool), tissue_px)
            tissue = plan.tissue_for_tiles(mask, np.zeros((plan.batch, 2), int))
        self._net, self._axes = net, plan.axes
        self._constant, self._packing = plan.constant, plan.packing
        self._results, self._tile = (
            (plan.rows, plan.columns, plan.out),
            packed_tile(plan.tile, plan.packing),
        )
        pair = index, index
        self._shapes = (
            like(params), pair, pair, plan.rows, plan.columns, self._tile, like(tissue),
        )  # fmt: skip

    @functools.cached_property
    def forward(self) -> Callable:
        """(params, size, at, rows, columns, tile, tissue) -> (rows, columns, cells)."""
        return self._compiled(*self.forward_call)

    @functools.cached_property
    def backward(self) -> Callable:
        """(grads, cotangents of what forward returns, and its arguments) -> (grads,
        cotangents of rows, of columns). The tiles' gradient is added to `grads`, which
        is donated."""
        return self._compiled(*self.backward_call, donate=True)

    def compile(self) -> None:
        """Compiles both passes at the same time."""
        # Traced here: what JAX is told within a block holds for this thread alone.
        calls = {"forward": self.forward_call, "backward": self.backward_call}
        lowered = {
            name: self._lowered(*call, donate=name == "backward")
            for name, call in calls.items()
            if name not in self.__dict__
        }
        with ThreadPoolExecutor() as pool:
            compiled = pool.map(lambda one: one.compile(), lowered.values())
            for name, one in zip(lowered, compiled, strict=True):
                setattr(self, name, _counted(one, *calls[name]))

    @property
    def compiler_seconds(self) -> float | None:
        """Seconds of both passes as the compiler has them; None where it has none."""
        costs = [p.cost_analysis() or {} for p in (self.forward, self.backward)]
        seconds = [cost.get("optimal_seconds", 0) for cost in costs]
        return sum(seconds) if min(seconds) > 0 else None

    @property
    def forward_call(self) -> tuple[Callable, tuple]:
        """The forward pass, not compiled, and the shapes of its arguments."""
        return self._pass, self._shapes

    @property
    def backward_call(self) -> tuple[Callable, tuple]:
        """The backward pass, not compiled, and the shapes of its arguments."""

        def backward(grads, cotangents, params, size, at, rows, columns, *rest):
            def forward(params, rows, columns):
                seams = map(_stopped, (rows, columns), self._constant)
                return self._pass(params, size, at, *seams, *rest)

            _, back = jax.vjp(forward, params, rows, columns)
            more, rows, columns = back(cotangents)
            return jax.tree.map(jnp.add, grads, more), rows, columns

        return backward, (self._shapes[0], self._results, *self._shapes)

    @functools.cached_property
    def flops(self) -> tuple[int, int]:
        """FLOPs of a batch, forward and backward."""
        calls = self.forward_call, self.backward_call
        return tuple(count_flops(function, *shapes) for function, shapes in calls)

    @functools.cached_property
    def to_pixels(self) -> Callable:
        """(cotangents of what forward returns, and its arguments) -> (gradient of the
        tiles' packed pixels, cotangents of rows, of columns)."""

        def to_pixels(cotangents, params, size, at, rows, columns, tile, tissue):
            forward = lambda x, r, c: self._pass(params, size, at, r, c, x, tissue)
            _, back = jax.vjp(forward, tile.astype(self.wide), rows, columns)
            return back(cotangents)

        return self._compiled(to_pixels, (self._results, *self._shapes))

    @property
    def wide(self) -> jnp.dtype:
        """Type of the gradient of pixels: float32, or float64 where the net has it."""
        return jnp.promote_types(jnp.float32, self._results[-1].dtype)

    def _pass(self, params, size, at, rows, columns, tile, tissue):
        return stream_one_tile(
            self._net, self._axes, size, params, at, rows, columns, tile,
            tissue=tissue, packing=self._packing,
        )  # fmt: skip

    def _lowered(self, function, shapes, donate=False):
        return jax.jit(function, donate_argnums=0 if donate else ()).lower(*shapes)

    def _compiled(self, function, shapes, donate=False):
        lowered = self._lowered(function, shapes, donate)
        return _counted(lowered.compile(), function, shapes)


def _counted(compiled, function, shapes):
    return Counted(compiled, lambda: count_flops(function, *shapes))


def _stopped(buffers, which):
    """Buffers, of which some are given no gradient."""
    both = zip(buffers, which, strict=True)
    return [jax.lax.stop_gradient(b) if stop else b for b, stop in both]
