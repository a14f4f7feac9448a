"""Encoders and patch-all pools on whatever device JAX finds.

    python -m benchmarks.accelerator --out accelerator.json [--quick] [--only TEXT]

A forward pass and a training step (AdamW) of each, in float32 and bfloat16, on one
device that holds the batch. Last a ViT-L in bfloat16, forward on a batch that the
device holds and, "from host", on uint8 batches that it gets from host memory while it
computes. `--quick` measures one size of each; on a CPU, where sizes are small in any
case and the ViT is a tiny one, it leaves out the deeper ResNets. Columns:

seconds: of one step, median after warming up, each step waited for; from the host, of
    all batches over their number.
tiles_per_s: tiles of the batch over seconds.
temp_bytes, argument_bytes: what XLA sets aside for the compiled step.
device_peak_bytes: the most the device has held since the process began, which belongs
    to a row only if it rose there. Null where the device keeps no count.
flops: matmuls and convolutions of the step, recomputed ones too, padding not counted.
mfu: flops over seconds over the device's dense peak for the dtype. Float32's is TF32's
    on NVIDIA: that is what JAX multiplies in there, unless JAX_DEFAULT_MATMUL_PRECISION
    says otherwise. peak_from: the maker's data sheet or a large matmul in this run.
relative_error: against float64 on the CPU, in the 2-norm, of the logits (forward) or of
    the gradient without dropout (train), on a small batch of the same inputs.
"""

import collections
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import device, record
from wsi_jax.methods import mil
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.foundation_models import foundation_model
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.trunk import Trunk
from wsi_jax.nets.vit_encoder import ViTEncoder
from wsi_jax.training.flops import count_flops
from wsi_jax.training.supervised import supervised
from wsi_jax.types import Bag, Dtype, Prediction, Task, TrainState

DTYPES = ("float32", "bfloat16")
TASK = Task(("normal", "tumor"))
FEATURES = 1024
AHEAD = 2  # batches on the device while one is awaited

POOLS = {
    "mean": (mil.Mean, {}),
    "max": (mil.Max, {}),
    "abmil": (mil.ABMIL, {}),
    "clam-sb": (mil.CLAM, {}),
    "clam-mb": (mil.CLAM, {"multi_branch": True}),
}


class Subject(NamedTuple):
    """Something to measure.

    Attributes:
        name: in the table.
        px: of a tile; 0 where tiles are features already.
        tiles: of each batch to time.
        few: of the batch whose error is measured.
        make: (dtype, optimiser, dropout) -> Method.
        batch: number of tiles -> Bag, on the host.
    """

    name: str
    px: int
    tiles: tuple[int, ...]
    few: int
    make: Callable
    batch: Callable


def subjects(platform: str, quick: bool) -> list[Subject]:
    """What is measured: real sizes, or sizes that a CPU finishes."""
    depths, bags = tuple(Depth), (1_000, 10_000, 100_000)
    sizes = ((224, 128), (256, 128))
    if platform == "cpu":
        depths = (Depth.resnet18,) if quick else depths
        sizes, bags = ((64, 4), (224, 4)), (1_000, 4_000)
    if quick:
        sizes, bags = sizes[:1], bags[:1]
    encoders = [encoder(depth, px, tiles) for depth in depths for px, tiles in sizes]
    return encoders + [pool(name, *of, bags) for name, of in POOLS.items()]


def encoder(depth: Depth, px: int, tiles: int) -> Subject:
    """An encoder and a linear layer that classify single tiles, trained end to end."""

    def make(dtype, tx, dropout):
        del dropout
        net = Encoder(depth=depth, norm=NormKind.frozen, dtype=Dtype(dtype)).make()

        def init(key, bag):
            del bag
            head = {"kernel": jnp.zeros((net.dim, len(TASK.classes)))}
            return {"encoder": net.init(key), "head": head}

        def classify(params, bag):
            features = net.apply(params["encoder"], bag.x)
            return features @ params["head"]["kernel"].astype(features.dtype)

        def loss(params, bag, keys):
            del keys
            logits = classify(params, bag)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, bag.target
            ), {}

        def predict(params, bag, key):
            del key
            return Prediction(classify(params, bag), bag.mask, {})

        return supervised(init, loss, predict, tx)

    def batch(n):
        x = np.random.default_rng(0).integers(0, 256, (n, px, px, 3), np.uint8)
        return Bag(x, np.ones((n, 1)), np.arange(n) % 2, np.ones(n, np.float32))

    return Subject(depth.name, px, (tiles,), 2, make, batch)


def pool(name: str, kind: Callable, options: dict, bags: tuple[int, ...]) -> Subject:
    """A patch-all pool on one bag of float16 features."""

    def make(dtype, tx, dropout):
        options_now = options if dropout else options | {"dropout": 0.0}
        config = kind(**options_now, dtype=mil.Dtype(dtype))
        return config.stages(TASK, tx)[0].method

    def batch(n):
        x = np.random.default_rng(0).normal(size=(1, n, FEATURES)).astype(np.float16)
        return Bag(x, np.ones((1, n), bool), np.ones(1, int), np.ones(1, np.float32))

    return Subject(name, 0, bags, bags[0], make, batch)


def measure(
    subject: Subject, steps: int, peaks: dict, peak_from: str
) -> Iterator[dict]:
    """Rows of one subject, as they come."""
    params, tx = draw(subject), optax.adamw(1e-4)
    exact = answer(subject, params, "float64")
    errors = {
        dtype: list(map(device.relative_error, answer(subject, params, dtype), exact))
        for dtype in DTYPES
    }
    for tiles, dtype in itertools.product(subject.tiles, DTYPES):
        bag = jax.device_put(subject.batch(tiles))
        method = subject.make(dtype, tx, True)

        def forward(state, bag, method=method):
            return state, method.predict(state.params, bag, state.key).logits

        passes = {"forward": forward, "train": method.step}
        for (which, step), error in zip(passes.items(), errors[dtype], strict=True):
            key = jax.random.key(0)
            state = TrainState(jnp.int32(0), params, tx.init(params), key)
            state = jax.tree.map(jnp.array, state)
            row = {"subject": subject.name, "px": subject.px, "tiles": tiles}
            row |= {"dtype": dtype, "pass": which}
            flops = count_flops(step, state, bag)
            try:
                row |= device.timed(step, state, bag, steps)
            except jax.errors.JaxRuntimeError as failure:
                if "RESOURCE_EXHAUSTED" not in str(failure):
                    raise
                yield row | {"failed": "out of memory"}
                continue
            yield device.with_rates(row, flops, peaks, peak_from, error)


def draw(subject: Subject):
    """Random parameters, without compiling an initialiser for every shape."""
    init = subject.make("float32", KEEP, True).init
    batch = subject.batch(subject.few)
    return device.random_params(jax.eval_shape(init, jax.random.key(0), batch).params)


# An "optimiser" whose state is the last gradient.
KEEP = optax.GradientTransformation(
    lambda params: params, lambda grads, state, params: (grads, grads)
)


def answer(subject: Subject, params, dtype: str) -> tuple:
    """Logits of a small batch, and the gradient of its loss without dropout."""
    exact = dtype == "float64"
    with device.float64_on_cpu() if exact else contextlib.nullcontext():
        params = jax.tree.map(np.float64, params) if exact else params
        method, bag = subject.make(dtype, KEEP, False), subject.batch(subject.few)

        def both(state, bag):
            logits = method.predict(state.params, bag, state.key).logits
            return logits, method.step(state, bag)[0].opt

        state = TrainState(jnp.int32(0), params, params, jax.random.key(1))
        return jax.device_get(jax.jit(both)(state, bag))


def fed(platform: str) -> tuple[str, Trunk, int, int]:
    """A ViT-L/16 in bfloat16: name, encoder, side of a tile and tiles of a batch.

    On a CPU a transformer that it finishes.
    """
    if platform == "cpu":
        tiny = ViTEncoder(width=64, depth=2, heads=2, hidden=256, native_px=64)
        return "vit_tiny16", dataclasses.replace(tiny, dtype=Dtype.bfloat16), 64, 8
    large = foundation_model("uni").encoder
    return "vit_l16", dataclasses.replace(large, dtype=Dtype.bfloat16), 224, 256


def measure_fed(
    platform: str, steps: int, peaks: dict, peak_from: str
) -> Iterator[dict]:
    """Two rows: a batch that lies on the device, and batches from host memory."""
    name, encoder, px, tiles = fed(platform)
    net = encoder.make()
    params = device.random_params(jax.eval_shape(net.init, jax.random.key(0)))
    draw = np.random.default_rng(0).integers
    host = [draw(0, 256, (tiles, px, px, 3), np.uint8) for _ in range(AHEAD + 1)]
    flops, few = count_flops(net.apply, params, host[0]), host[0][:2]
    exact = dataclasses.replace(encoder, dtype=Dtype.float64).make()
    with device.float64_on_cpu():
        wide = jax.tree.map(np.float64, params)
        features = np.asarray(jax.jit(exact.apply)(wide, few))
    error = device.relative_error(jax.jit(net.apply)(params, few), features)
    params = jax.device_put(params)
    held = device.timed(
        lambda params, x: (params, net.apply(params, x)),
        jax.tree.map(jnp.array, params),
        jax.device_put(host[0]),
        steps,
    )
    fed_s = feed(net.apply, params, host, steps)
    for way, seconds in (("forward", held["seconds"]), ("from host", fed_s)):
        row = {"subject": name, "px": px, "tiles": tiles, "dtype": "bfloat16"}
        row |= {"pass": way} | held | {"seconds": seconds}
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


def rows(args: record.Arguments) -> Iterator[dict]:
    """All rows, those of the transformer that is fed from the host last."""
    peaks, steps = device.peaks(), 3 if args.quick else 10
    platform = jax.devices()[0].platform
    for subject in subjects(platform, args.quick):
        if args.only in subject.name:
            yield from measure(subject, steps, *peaks)
    if args.only in fed(platform)[0]:
        yield from measure_fed(platform, 4 * steps, *peaks)


if __name__ == "__main__":
    only = {"default": "", "help": "subjects whose name contains this"}
    record.main(__doc__, rows, {"--only": only})
