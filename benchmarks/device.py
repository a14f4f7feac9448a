"""What the device can do, and what a call takes of it."""

import concurrent.futures
import contextlib
import functools
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# FLOP/s of one device, dense, from the makers' data sheets, by the start of its name:
# bfloat16, then float32 as JAX multiplies it (TF32; on TPUs one bfloat16 pass).
PEAKS = {
    "NVIDIA H200": (989e12, 494e12),
    "NVIDIA H100 PCIe": (756e12, 378e12),
    "NVIDIA H100": (989e12, 494e12),
    "NVIDIA A100": (312e12, 156e12),
    "TPU v4": (275e12, 275e12),
    "TPU v5 lite": (197e12, 197e12),
    "TPU v5e": (197e12, 197e12),
    "TPU v5": (459e12, 459e12),
    "TPU v6 lite": (918e12, 918e12),
}


def seconds(
    call: Callable[[], Any],
    times: int,
    *,
    warm: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Seconds of each of several calls, after `warm` ones that do not count."""
    spent = []
    for _ in range(warm + times):
        began = clock()
        jax.block_until_ready(call())
        spent.append(clock() - began)
    return spent[warm:]


def timed(step: Callable, state, batch, steps: int) -> dict:
    """Seconds and bytes of a step, compiled with the state donated.

    Args:
        step: (state, batch) -> (state, anything).
        state: on the device; gone afterwards.
        batch: on the device.
        steps: how many to time, after two that are not.
    """
    run = jax.jit(step, donate_argnums=0).lower(state, batch).compile()

    def once():
        nonlocal state
        state, other = run(state, batch)
        return state, other

    spent, memory = seconds(once, steps, warm=2), run.memory_analysis()
    return {
        "seconds": statistics.median(spent),
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "device_peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int | None:
    """The most that the first device has held; None where it keeps no count."""
    held = jax.devices()[0].memory_stats()
    return held and held["peak_bytes_in_use"]


def peaks() -> tuple[dict[str, float], str]:
    """FLOP/s of the first device by dtype, and where the numbers come from.

    Without a data sheet: the fastest of some large matmuls, a lower bound.
    """
    device = jax.devices()[0]
    for name, (bfloat16, float32) in PEAKS.items():
        if device.device_kind.startswith(name):
            return {"bfloat16": bfloat16, "float32": float32}, "data sheet"
    n = 1536 if device.platform == "cpu" else 8192
    peaks_by_dtype = {}
    for dtype in ("bfloat16", "float32"):
        x = jnp.ones((n, n), dtype)
        multiply = functools.partial(jax.jit(jnp.matmul), x, x)
        peaks_by_dtype[dtype] = 2 * n**3 / min(seconds(multiply, 12, warm=0))
    return peaks_by_dtype, f"matmul of {n}"


def with_rates(
    row: dict, flops: float, peaks: dict, peak_from: str, error: float
) -> dict:
    """A row of `tiles` and `seconds` with what follows from them."""
    return row | {
        "tiles_per_s": row["tiles"] / row["seconds"],
        "flops": flops,
        "mfu": flops / row["seconds"] / peaks[row["dtype"]],
        "peak_from": peak_from,
        "relative_error": error,
    }


def random_params(like):
    """Random parameters of such shapes, whose features neither grow nor vanish."""
    rng = np.random.default_rng(0)

    def one(path, leaf):
        if len(leaf.shape) > 1:
            size = math.prod(leaf.shape[:-1]) ** -0.5
            return rng.normal(0, size, leaf.shape).astype(np.float32)
        ones = path[-1].key in ("scale", "var", "gamma")
        return np.full(leaf.shape, ones, np.float32)

    return jax.tree_util.tree_map_with_path(one, like)


def relative_error(tree, exact) -> float:
    """|tree - exact| / |exact|, over all leaves at once."""
    flat, exact = (
        np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(t)])
        for t in (tree, exact)
    )
    return float(np.linalg.norm(flat - exact) / np.linalg.norm(exact))


@contextlib.contextmanager
def float64_on_cpu() -> Iterator[None]:
    """Within the block JAX computes in float64, on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        yield


def in_own_process(function: Callable, *args) -> Any:
    """What a call gives in a process of its own, whose memory is its own too."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(function, *args).result()
