"""What the device can do, and what a compiled step takes of it."""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

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
}


def timed(step: Callable, state, batch, steps: int) -> dict:
    """Seconds and bytes of a step, compiled with the state donated.

    Args:
        step: (state, batch) -> (state, anything).
        state: on the device; gone afterwards.
        batch: on the device.
        steps: how many to time, after two that are not.
    """
    run = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    seconds = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(run(state, batch))
        seconds.append(time.perf_counter() - start)
    memory, held = run.memory_analysis(), jax.devices()[0].memory_stats()
    return {
        "seconds": statistics.median(seconds[2:]),
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "device_peak_bytes": held and held["peak_bytes_in_use"],
    }


def peaks() -> tuple[dict[str, float], str]:
    """FLOP/s of the first device by dtype, and where the numbers come from.

    Of a device without a data sheet here: the fastest of some large matmuls, which is a
    lower bound, and a poor one while the machine is busy with something else.
    """
    device = jax.devices()[0]
    for name, (bfloat16, float32) in PEAKS.items():
        if device.device_kind.startswith(name):
            return {"bfloat16": bfloat16, "float32": float32}, "data sheet"
    n = 1536 if device.platform == "cpu" else 8192
    peaks_by_dtype = {}
    for dtype in ("bfloat16", "float32"):
        run = jax.jit(jnp.matmul)
        x = jnp.ones((n, n), dtype)
        seconds = [_clock(run, x, x) for _ in range(12)]
        peaks_by_dtype[dtype] = 2 * n**3 / min(seconds)
    return peaks_by_dtype, f"matmul of {n}"


def _clock(run: Callable, *args) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*args))
    return time.perf_counter() - start
