"""Cost of a function before it runs: floating-point operations and memory."""

import math
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

_OPAQUE = ("pallas_call", "custom_call", "ffi_call", "ragged_dot_general")


def count_flops(fn: Callable, *args) -> int:
    """Floating-point operations of the matmuls and convolutions in `fn(*args)`.

    Read off the jaxpr: nothing runs, and loops count as often as they turn. A multiply-
    add is 2. Of a convolution only products of two real elements count, not those with
    padding or the holes of a dilation. Elementwise work is not counted. Of a `cond` the
    dearest branch counts, of a choice by platform that for all others; under
    `shard_map` all devices together; what `checkpoint` recomputes, again.

    Args:
        args: arrays, tracers or `jax.ShapeDtypeStruct`s.

    Raises:
        ValueError: a `while_loop` with matmuls in it, whose iterations depend on data,
            or a kernel that hides its arithmetic.
    """
    return _jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


class Counted:
    """A compiled function that adds the arithmetic of its calls to `executed()`.

    Args:
        flops: FLOPs of a call, where they are the same for all; None to count them
            at the first call with each shape of arguments.
        processes: how many call it together; each counts its share.
    """

    def __init__(
        self,
        function: Callable,
        flops: Callable[[], int] | None = None,
        processes: int = 1,
    ):
        self._function, self._flops, self._counts = function, flops, {}
        self._processes = processes

    def __getattr__(self, name):
        return getattr(self._function, name)

    def __call__(self, *args, **kwargs):
        leaves, tree = jax.tree.flatten(() if self._flops else (args, kwargs))
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            key = tree, tuple(map(_shape, leaves))
            if key not in self._counts:
                self._counts[key] = self._count(args, kwargs)
            flops = self._counts[key]
            _add(flops and flops // self._processes)
        return self._function(*args, **kwargs)

    def _count(self, args, kwargs) -> int | None:
        """FLOPs of one call; None where they depend on data."""
        try:
            if self._flops:
                return self._flops()
            return count_flops(lambda *args: self._function(*args, **kwargs), *args)
        except ValueError:
            return None


def executed() -> dict[str, int]:
    """Work of the `Counted` functions of this process so far.

    Returns:
        `flops`, padding of batches included; `uncounted_calls`, calls of functions
        whose arithmetic depends on data.
    """
    with _lock:
        return dict(_done)


_lock = threading.Lock()
_done = {"flops": 0, "uncounted_calls": 0}


def _add(flops: int | None) -> None:
    with _lock:
        _done["flops"] += flops or 0
        _done["uncounted_calls"] += flops is None


def _shape(leaf):
    """Shape and type of an argument."""
    if hasattr(leaf, "dtype"):
        return leaf.shape, leaf.dtype
    return leaf if isinstance(leaf, int | str) else type(leaf)


def compiled_temp_bytes(fn: Callable, *args) -> int:
    """Bytes of temporaries that XLA sets aside for `fn(*args)`, arguments not counted.

    Compiles, but does not run. On CPU, `checkpoint` saves memory inside loops only.
    """
    return jax.jit(fn).lower(*args).compile().memory_analysis().temp_size_in_bytes


def _jaxpr_flops(jaxpr: Jaxpr) -> int:
    return sum(map(_eqn_flops, jaxpr.eqns))


def _eqn_flops(eqn) -> int:
    name = eqn.primitive.name
    match name:
        case "dot_general":
            return _dot_flops(eqn)
        case "conv_general_dilated":
            return _conv_flops(eqn)
        case "scan":
            return eqn.params["length"] * _jaxpr_flops(eqn.params["jaxpr"].jaxpr)
        case "cond":
            return max(map(_jaxpr_flops, _branches(eqn)))
    inner = sum(map(_jaxpr_flops, _jaxprs_in(eqn)))
    if name == "shard_map":
        mesh = eqn.params["mesh"]
        return inner * math.prod(mesh.shape[a] for a in eqn.params["newly_manual_axes"])
    if name == "while" and inner:
        raise ValueError(
            "cannot count a while_loop with matmuls in it: its iterations depend on "
            "data; use scan, or fori_loop with fixed bounds"
        )
    if name in _OPAQUE:
        raise ValueError(f"cannot count the arithmetic inside {name}")
    return inner


def _branches(eqn):
    """Branches of a `cond`; of `lax.platform_dependent` only the default, if any."""
    branches = [branch.jaxpr for branch in eqn.params["branches"]]
    platforms = eqn.params.get("branches_platforms") or [None] * len(branches)
    default = [b for b, named in zip(branches, platforms, strict=True) if named is None]
    return default or branches


def _jaxprs_in(eqn):
    """The jaxprs an equation calls: pjit, checkpoint, custom_vjp, closed_call, ..."""
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def _dot_flops(eqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval
    return 2 * eqn.outvars[0].aval.size * math.prod(lhs.shape[i] for i in contracted)


def _conv_flops(eqn) -> int:
    lhs, rhs = (v.aval.shape for v in eqn.invars)
    out = eqn.outvars[0].aval.shape
    p, dims = eqn.params, eqn.params["dimension_numbers"]
    products = [
        window_products(
            lhs[i], rhs[k], out[o], stride, pad[0], lhs_dilation, rhs_dilation
        )
        for i, k, o, stride, pad, lhs_dilation, rhs_dilation in zip(
            dims.lhs_spec[2:],
            dims.rhs_spec[2:],
            dims.out_spec[2:],
            p["window_strides"],
            p["padding"],
            p["lhs_dilation"],
            p["rhs_dilation"],
            strict=True,
        )
    ]
    # The kernel's input features are already those of one group.
    batch, features = (out[i] for i in dims.out_spec[:2])
    return 2 * batch * features * rhs[dims.rhs_spec[1]] * math.prod(products)


def window_products(
    size, taps, outputs, stride, pad, lhs_dilation, rhs_dilation
) -> int:
    """(output, tap) pairs along one dimension that meet an element of the input."""
    at = np.arange(outputs)[:, None] * stride + np.arange(taps) * rhs_dilation - pad
    inside = (at >= 0) & (at < size * lhs_dilation)
    return int((inside & (at % lhs_dilation == 0)).sum())
