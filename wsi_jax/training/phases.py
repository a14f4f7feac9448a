"""Passes of a streamed net through a batch of tiles, compiled for devices."""

import copy
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from wsi_jax.ops.stream_plan import Net, StreamPlan, packed_tile
from wsi_jax.ops.stream_tile import TissueMask
from wsi_jax.ops.streaming import stream_one_tile
from wsi_jax.training.flops import Counted, count_flops
from wsi_jax.training.mesh import SPLIT, WHOLE


class Phases:
    """Forward and backward pass of a batch of tiles through a streamed net, compiled.

    Each is compiled once, when it is first needed, and serves slides of any size; a
    tile of another shape is refused.

    Args:
        tissue_px: side of the cells of tissue beyond which windows read zeros; 0 for
            the net's own map.

    Attributes:
        plan: the plan of their tiles.
        mesh: devices over which tiles are split; None for one device.
        forward_call, backward_call: the passes, not compiled, and the shapes of their
            arguments.
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
        self._net, self._axes, self.plan = net, plan.axes, plan
        self._constant, self._packing = plan.constant, plan.packing
        self._results, self._tile = (
            (plan.rows, plan.columns, plan.out),
            packed_tile(plan.tile, plan.packing),
        )
        pair = index, index
        shapes = (
            like(params), pair, pair, plan.rows, plan.columns, self._tile, like(tissue),
        )  # fmt: skip
        # Kept, for what is traced is known by its function.
        self.forward_call = self._pass, shapes
        self.backward_call = self._back, (shapes[0], self._results, *shapes)
        self._to_pixels_call = self._back_to_pixels, (self._results, *shapes)
        self.mesh, self._device = None, None
        self._lock, self._work = threading.Lock(), {}

    def on(self, place: jax.Device | Mesh) -> "Phases":
        """The same phases for one device, traced once for all devices; or for tiles
        split over some, as many times more at once, without `backward`."""
        other = copy.copy(self)
        for name in ("forward", "backward", "to_pixels"):
            other.__dict__.pop(name, None)
        if isinstance(place, Mesh):
            other.mesh, other.plan = place, self.plan.times(place.size)
        else:
            other._device = place
        return other

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
                setattr(self, name, self._counted(one, *calls[name]))

    @property
    def compiler_seconds(self) -> float | None:
        """Seconds of both passes as the compiler has them; None where it has none."""
        costs = [p.cost_analysis() or {} for p in (self.forward, self.backward)]
        seconds = [cost.get("optimal_seconds", 0) for cost in costs]
        return sum(seconds) if min(seconds) > 0 else None

    @property
    def flops(self) -> tuple[int, int]:
        """FLOPs of a batch, forward and backward."""
        return self._flops(*self.forward_call), self._flops(*self.backward_call)

    @functools.cached_property
    def to_pixels(self) -> Callable:
        """(cotangents of what forward returns, and its arguments) -> (gradient of the
        tiles' packed pixels, cotangents of rows, of columns)."""
        return self._compiled(*self._to_pixels_call)

    @property
    def wide(self) -> jnp.dtype:
        """Type of the gradient of pixels: float32, or float64 where the net has it."""
        return jnp.promote_types(jnp.float32, self._results[-1].dtype)

    def _pass(self, params, size, at, rows, columns, tile, tissue):
        return stream_one_tile(
            self._net, self._axes, size, params, at, rows, columns, tile,
            tissue=tissue, packing=self._packing,
        )  # fmt: skip

    def _back(self, grads, cotangents, params, size, at, rows, columns, *rest):
        def forward(params, rows, columns):
            seams = map(_stopped, (rows, columns), self._constant)
            return self._pass(params, size, at, *seams, *rest)

        _, back = jax.vjp(forward, params, rows, columns)
        more, rows, columns = back(cotangents)
        return jax.tree.map(jnp.add, grads, more), rows, columns

    def _back_to_pixels(
        self, cotangents, params, size, at, rows, columns, tile, tissue
    ):
        forward = lambda x, r, c: self._pass(params, size, at, r, c, x, tissue)
        _, back = jax.vjp(forward, tile.astype(self.wide), rows, columns)
        return back(cotangents)

    def _lowered(self, function, shapes, donate=False):
        if self.mesh is not None:
            function, shapes = self._split(function, shapes)
        jitted = jax.jit(function, donate_argnums=0 if donate else ())
        if self._device is None:
            return jitted.lower(*shapes)
        there = SingleDeviceSharding(self._device)
        place = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=there)
        # One device traces, and the others find it done.
        with self._lock, jax.default_device(None):
            return jitted.lower(*jax.tree.map(place, shapes))

    def _split(self, function, shapes):
        """The function on every device, for tiles of its own, and its shapes."""
        mesh, params = self.mesh, self.forward_call[1][0]

        def spec(arg, a):
            return WHOLE if arg is params or not a.shape else SPLIT

        def place(arg, a):
            n, to = mesh.size, spec(arg, a)
            shape = a.shape if to == WHOLE else (n * a.shape[0], *a.shape[1:])
            there = NamedSharding(mesh, to)
            return jax.ShapeDtypeStruct(shape, a.dtype, sharding=there)

        each = lambda f: tuple(
            jax.tree.map(functools.partial(f, arg), arg) for arg in shapes
        )
        split = jax.shard_map(
            function, mesh=mesh, in_specs=each(spec), out_specs=SPLIT, check_vma=False
        )
        return split, each(place)

    def _compiled(self, function, shapes, donate=False):
        lowered = self._lowered(function, shapes, donate)
        return self._counted(lowered.compile(), function, shapes)

    def _counted(self, compiled, function, shapes):
        return Counted(compiled, lambda: self._flops(function, shapes))

    def _flops(self, function, shapes):
        """FLOPs of a pass, counted once for all devices."""
        with self._lock:
            if function not in self._work:
                self._work[function] = count_flops(function, *shapes)
            return self._work[function] * (self.mesh.size if self.mesh else 1)


def _stopped(buffers, which):
    """Buffers, of which some are given no gradient."""
    both = zip(buffers, which, strict=True)
    return [jax.lax.stop_gradient(b) if stop else b for b, stop in both]
