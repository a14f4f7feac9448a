"""An encoder fed with uint8 batches from host memory, copies behind computation."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import device
from wsi_jax.nets.foundation_models import foundation_model
from wsi_jax.nets.trunk import Trunk
from wsi_jax.nets.vit_encoder import ViTEncoder
from wsi_jax.training.flops import count_flops
from wsi_jax.types import Dtype

AHEAD = 2  # batches on the device while one is awaited


@dataclasses.dataclass(kw_only=True)
class Fed:
    """Something to measure.

    Attributes:
        name: in the table.
        encoder: of tiles.
        px: of a tile.
        tiles: of a batch.
    """

    name: str
    encoder: Trunk
    px: int
    tiles: int


def fed(platform: str) -> Fed:
    """A ViT-L/16 in bfloat16; on a CPU a transformer that it finishes."""
    if platform == "cpu":
        tiny = ViTEncoder(width=64, depth=2, heads=2, hidden=256, native_px=64)
        subject = Fed(name="vit_tiny16", encoder=tiny, px=64, tiles=8)
    else:
        large = foundation_model("uni").encoder
        subject = Fed(name="vit_l16", encoder=large, px=224, tiles=256)
    subject.encoder.dtype = Dtype.bfloat16
    return subject


def measure_fed(
    subject: Fed, steps: int, peaks: dict, peak_from: str
) -> Iterator[dict]:
    """Two rows: a batch that lies on the device, and batches from host memory.

    Args:
        subject: what.
        steps: batches to time.
        peaks: FLOP/s by dtype.
        peak_from: where they are from.
    """
    net, dtype = subject.encoder.make(), subject.encoder.dtype.name
    params = device.random_params(jax.eval_shape(net.init, jax.random.key(0)))
    shape = subject.tiles, subject.px, subject.px, 3
    draw = np.random.default_rng(0).integers
    host = [draw(0, 256, shape, np.uint8) for _ in range(AHEAD + 1)]
    flops, few = count_flops(net.apply, params, host[0]), host[0][:2]
    error = device.relative_error(
        jax.jit(net.apply)(params, few), exact(subject, params, few)
    )
    params = jax.device_put(params)
    held = device.timed(
        lambda params, x: (params, net.apply(params, x)),
        jax.tree.map(jnp.array, params),
        jax.device_put(host[0]),
        steps,
    )
    fed_s = feed(net.apply, params, host, steps)
    for way, seconds in (("forward", held["seconds"]), ("from host", fed_s)):
        row = {"subject": subject.name, "px": subject.px, "tiles": subject.tiles}
        row |= {"dtype": dtype, "pass": way} | held | {"seconds": seconds}
        yield device.with_rates(row, flops, peaks, peak_from, error)


def feed(apply, params, host: list[np.ndarray], steps: int) -> float:
    """Seconds of a batch, features back on the host; copies are not waited for."""
    run, running = jax.jit(apply), collections.deque()
    jax.block_until_ready(run(params, host[0]))
    start = time.perf_counter()
    for x in itertools.islice(itertools.cycle(host), steps):
        running.append(run(params, jax.device_put(x)))
        if len(running) > AHEAD:
            np.asarray(running.popleft())
    jax.device_get(list(running))
    return (time.perf_counter() - start) / steps


def exact(subject: Fed, params, x: np.ndarray) -> np.ndarray:
    """Features in float64, by the CPU."""
    encoder = dataclasses.replace(subject.encoder, dtype=Dtype.float64)
    with device.float64_on_cpu():
        params = jax.tree.map(np.float64, params)
        return np.asarray(jax.jit(encoder.make().apply)(params, x))
