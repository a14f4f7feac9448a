"""A trunk over a whole image, streamed, beside the same trunk on the image at once.

    python -m benchmarks.streaming --out benchmarks/results/streaming.json

Forward and backward, ratios to the dense net without recomputation. FLOPs are counted
from the jaxpr, loops as often as they turn; 65,536 px are counted and not run. CPU
seconds are the least of three runs, compilation excluded. `temp_bytes` are what XLA
sets aside: of a whole image, or of one tile where tiles come from the host, one by one.

    python -m benchmarks.streaming --device gpu --out FILE

runs one training step of ResNet-34 in bfloat16 over an image of 65,536 px, eight tiles
at once from the host, uploading them included, and the dense step at 4,096 px, ours and
PyTorch's where it is installed.
"""

import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record
from benchmarks.device import peak_bytes, peaks, seconds
from benchmarks.overlapping_tiles import halo
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.ops.stream_plan import best_tile_side, plan_stream
from wsi_jax.ops.streaming import stream
from wsi_jax.ops.trunk_ops import DENSE
from wsi_jax.training.flops import count_flops
from wsi_jax.training.memory_estimate import temporaries
from wsi_jax.training.phases import Phases
from wsi_jax.training.tile_passes import Route, backward_pass, forward_pass
from wsi_jax.types import Dtype

WHOLE_PX = 65_536
# Sides of tiles, near which one is taken that divides the image into whole tiles.
COUNTED = {
    "resnet34": (512, 1024, 2048, 4096),
    "resnet18": (2048,),
    "resnet50": (2048,),
}
OVERLAPPING_PX = 1280
AT_ONCE = 8  # tiles, on an accelerator
RUNS = 3


class Subject:
    """A trunk as a net, its parameters and their shapes."""

    def __init__(self, name: str, dtype: Dtype = Dtype.float32):
        self.name = name
        encoder = Encoder(depth=Depth[name], dtype=dtype, norm=NormKind.frozen)
        module = encoder.trunk()
        self.net = lambda params, x, ops: module.apply(params, x, ops)
        one = jnp.zeros((1, 64, 64, 3), jnp.uint8)
        self.params = jax.jit(module.init)(jax.random.key(0), one)

    def plan(self, tile_px: int, batch: int = 1):
        """For square tiles, some at once."""
        tiles = jax.ShapeDtypeStruct((batch, tile_px, tile_px, 3), jnp.uint8)
        return plan_stream(self.net, self.params, tiles, (tile_px, tile_px), True)

    def tile(self, image_px: int, about_px: int) -> int:
        """The side of a tile near `about_px` of which a whole number takes an image."""
        return best_tile_side(self.plan(256), image_px, about_px)

    def grad(self, forward: Callable) -> Callable:
        """(params, image) -> gradient of the parameters."""
        return jax.grad(lambda params, x: forward(params, x).astype(jnp.float32).sum())

    def dense(self, params, x):
        return self.net(params, x, DENSE)


def image(px: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, px, px, 3), jnp.uint8)


def counted(name: str, image_px: int, about_px: int) -> dict:
    """Tiles from the host over an image that is too large to run here."""
    subject = Subject(name)
    tile_px = subject.tile(image_px, about_px)
    plans = subject.plan(tile_px)
    phases = Phases(subject.net, plans, subject.params)
    each = sum(
        count_flops(f, *s) for f, s in (phases.forward_call, phases.backward_call)
    )
    whole = count_flops(subject.grad(subject.dense), subject.params, image(image_px))
    tiles = int(np.prod(plans.tiles((image_px, image_px))))
    return {
        "trunk": name,
        "driver": "host",
        "image_px": image_px,
        "tile_px": tile_px,
        "flops_ratio": tiles * each / whole,
        "temp_bytes": temporaries(phases),
        "seconds_ratio": None,
        "seam_bytes": plans.seam_bytes((image_px, image_px)),
    }


def measured(
    name: str, image_px: int, strips: int, about_px: int, overlap: bool
) -> list[dict]:
    """Dense, strips, tiles and maybe overlapping ones, run one after the other."""
    subject = Subject(name)
    tile_px = subject.tile(image_px, about_px)
    streamed = functools.partial(stream, subject.net)
    forwards = {
        ("dense", image_px): subject.dense,
        ("strips", strips): lambda p, x: streamed(p, x, strips),
        ("tiles", tile_px): lambda p, x: streamed(p, x, (tile_px, tile_px)),
    }
    if overlap:
        side = OVERLAPPING_PX, OVERLAPPING_PX
        forwards["overlapping", side[0]] = lambda p, x: halo(subject.net, p, x, side)
    pixels = np.random.default_rng(0).integers(0, 256, image(image_px).shape, np.uint8)
    measurements = []
    for forward in forwards.values():
        grad = subject.grad(forward)
        run = jax.jit(grad).lower(subject.params, image(image_px)).compile()
        call = functools.partial(run, subject.params, pixels)
        spent = min(seconds(call, RUNS, warm=0, clock=time.process_time))
        flops = count_flops(grad, subject.params, image(image_px))
        measurements.append((flops, run.memory_analysis().temp_size_in_bytes, spent))
        print(f"{name}, {image_px} px: {spent:.1f} CPU seconds", flush=True)
    (whole, _, alone), *_ = measurements
    return [
        {
            "trunk": name,
            "driver": driver,
            "image_px": image_px,
            "tile_px": side,
            "flops_ratio": flops / whole,
            "temp_bytes": temp_bytes,
            "seconds_ratio": spent / alone,
            "cpu_seconds": spent,
        }
        for (driver, side), (flops, temp_bytes, spent) in zip(
            forwards, measurements, strict=True
        )
    ]


def on_device(image_px: int, tile_px: int, dense_px: int) -> Iterator[dict]:
    """One step of ResNet-34 in bfloat16, whole and with 15 % tissue; dense; PyTorch."""
    subject, peak = Subject("resnet34", Dtype.bfloat16), peaks()[0]["bfloat16"]
    work = lambda px: count_flops(
        subject.grad(subject.dense), subject.params, image(px)
    )

    def row(driver, px, side, spent, flops, **more):
        return {
            "trunk": subject.name,
            "driver": driver,
            "image_px": px,
            "tile_px": side,
            "seconds": spent,
            "flops": flops,
            "model_flop_utilisation": flops / spent / peak,
            "device_peak_bytes": peak_bytes(),
        } | more

    pixels = np.random.default_rng(0).integers(0, 256, image(dense_px).shape, np.uint8)
    grad = jax.jit(subject.grad(subject.dense))
    dense = min(seconds(lambda: grad(subject.params, pixels), RUNS))
    yield row("dense", dense_px, dense_px, dense, work(dense_px))
    if step := pytorch_step(dense_px):
        torch_s = min(seconds(step, RUNS))
        yield row("dense, PyTorch", dense_px, dense_px, torch_s, work(dense_px))
    side = subject.tile(image_px, tile_px)
    plans = subject.plan(side, AT_ONCE)
    phases = Phases(subject.net, plans, subject.params)
    tile = pixels[:, :side, :side]
    tile = np.pad(tile, [(0, 0), *((0, side - n) for n in tile.shape[1:3]), (0, 0)])
    y, x = plans.cells((image_px, image_px))
    tissue = np.zeros((y, x), bool)
    tissue[: round(y * 0.15**0.5), : round(x * 0.15**0.5)] = True
    for share, wanted in ((1.0, np.ones_like(tissue)), (0.15, tissue)):
        needed = plans.tiles_for_cells(wanted, (image_px, image_px))
        read = lambda order: (tile for _ in order)
        route = Route(plans, (image_px, image_px), read, needed)

        def step(route=route, wanted=wanted):
            walked = forward_pass(phases, subject.params, route)
            cotangent = np.broadcast_to(wanted[None, :, :, None], walked.cells.shape)
            return backward_pass(phases, subject.params, route, walked, cotangent)

        spent = min(seconds(step, RUNS))
        ratio = spent / dense * (dense_px / image_px) ** 2
        more = {"tissue": share, "tiles": int(needed.sum()), "against_dense": ratio}
        yield row("host", image_px, side, spent, work(image_px) * share, **more)


def pytorch_step(px: int) -> Callable[[], None] | None:
    """The same dense step of a ResNet-34 trunk in PyTorch; None without it."""
    try:
        import torch
        from torch import nn
    except ImportError:
        return None

    def block(d_in, d, stride):
        conv = lambda i, o, k, s: nn.Sequential(
            nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o)
        )
        body = nn.Sequential(conv(d_in, d, 3, stride), nn.ReLU(), conv(d, d, 3, 1))
        skip = conv(d_in, d, 1, stride) if stride > 1 else nn.Identity()
        return Residual(body, skip)

    class Residual(nn.Module):
        def __init__(self, body, skip):
            super().__init__()
            self.body, self.skip = body, skip

        def forward(self, x):
            return torch.relu(self.body(x) + self.skip(x))

    layers, d_in = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)], 64
    layers += [nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for i, (d, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
        layers += [block(d_in, d, 2 if i else 1)]
        layers += [block(d, d, 1) for _ in range(count - 1)]
        d_in = d
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = nn.Sequential(*layers).to(device, memory_format=torch.channels_last).eval()
    x = torch.rand(1, 3, px, px, device=device).to(memory_format=torch.channels_last)

    def step():
        net.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            net(x).float().sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def rows(args: record.Arguments) -> Iterator[dict]:
    """What is counted and run on a CPU, or one step on an accelerator."""
    if args.device == "gpu":
        sizes = (2048, 512, 512) if args.quick else (WHOLE_PX, 1024, 4096)
        yield from on_device(*sizes)
    elif args.quick:
        yield counted("resnet18", WHOLE_PX, 1024)
    else:
        for name, sides in COUNTED.items():
            yield from (counted(name, WHOLE_PX, side) for side in sides)
        yield from measured("resnet18", 2048, strips=256, about_px=544, overlap=True)
        yield from measured("resnet18", 4096, strips=256, about_px=544, overlap=False)


if __name__ == "__main__":
    on = {"choices": ("cpu", "gpu"), "default": "cpu"}
    record.main(__doc__, rows, {"--device": on})
