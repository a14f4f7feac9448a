"""Weak scaling, forecast: devices that each have slides of their own, and one alone.

A step takes as long as the device that has most to do, and one all-reduce of gradients.
Seconds of programs are the compilers' (`benchmarks.compiled`), links are those of data
sheets, slides are drawn as CAMELYON16 has them. Reading of slides is not counted.
"""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.chips import CHIPS
from benchmarks.compiled_programs import PRODUCTION, programs
from benchmarks.program_shapes import KEY, stages_of
from wsi_jax.ops.tile_schedule import tile_batches
from wsi_jax.training.mesh import make_mesh
from wsi_jax.training.packing import like_sizes, spread_by_size
from wsi_jax.types import bucket

RESULTS = pathlib.Path(__file__).parent / "results"
# Tissue of a slide of CAMELYON16, in tiles of .448 mm: a twentieth of the slides lies
# between two of the numbers. From 113 of its 399 slides, the beginnings of three parts
# of a log, weighed by these: github.com/binli123/dsmil-wsi/issues/14. The mean is 615;
# the paper of that log has 625 (Li et al. 2021).
TISSUE_TILES = (
    *(30, 34, 61, 135, 169, 202, 255, 265, 306, 367, 392),
    *(472, 514, 646, 747, 831, 965, 1191, 1330, 1550, 3775),
)
TILE_MM = 0.448
# What is scanned: 243 of its slides have 221,184 x 97,792 px of .243 um; those of the
# other hospital reach at least as far as their lesions, in mm, in eighths of them.
TALL_MM, TALL_SHARE = (53.7, 23.8), 243 / 399
WIDE_MM = (
    (2.7, 3.4, 8.6, 9.5, 11.0, 14.0, 16.4, 20.1, 22.5),
    (4.3, 5.9, 10.5, 12.2, 17.0, 19.0, 25.1, 28.9, 40.8),
)
WINDOW, DRAWN = 16, 8192  # batches that are made at a time; slides, at least


class Slides(NamedTuple):
    """Tissue [n] in square mm, and height and width [n 2] of what is scanned, in mm."""

    area: np.ndarray
    frame: np.ndarray


class Cost(NamedTuple):
    """The work of a method.

    Attributes:
        sizes: (slides) -> the work of each.
        step: (slides, sizes, indices of each device's slides) -> seconds.
    """

    sizes: Callable[[Slides], np.ndarray]
    step: Callable[[Slides, np.ndarray, Sequence[np.ndarray]], float]


def draw(rng: np.random.Generator, count: int, spread: float = 1.0) -> Slides:
    """Slides as CAMELYON16 has them, or a power of their tissue with the same mean."""
    places = rng.random((4, count))
    quantile = lambda p, q: np.interp(p, np.linspace(0, 1, len(q)), q)
    tiles = quantile(places[0], TISSUE_TILES)
    area = tiles**spread * (tiles.mean() / (tiles**spread).mean()) * TILE_MM**2
    wide = np.stack(
        [quantile(places[1 + i], side) for i, side in enumerate(WIDE_MM)], -1
    )
    return Slides(area, np.where(places[3][:, None] < TALL_SHARE, TALL_MM, wide))


@functools.cache
def disc_calls(tiles: int) -> int:
    """Batches of eight in which the tiles of a disc of tissue are computed."""
    side = 2 * math.ceil(math.sqrt(tiles / math.pi)) + 1
    y, x = np.mgrid[:side, :side] - side // 2
    inside = np.zeros(side * side, bool)
    inside[np.argsort(x**2 + y**2, axis=None, kind="stable")[:tiles]] = True
    return len(tile_batches(inside.reshape(side, side), 8))


def tile_by_tile(call_s: float, tile_mm: float) -> Cost:
    """A device takes its slides one after the other, and is done when its own are."""

    def sizes(slides):
        tiles = np.ceil(slides.area / tile_mm**2).astype(int)
        return np.array([disc_calls(n) for n in tiles.tolist()])

    def step(slides, sizes, devices):
        return call_s * max(sizes[own].sum() for own in devices)

    return Cost(sizes, step)


def padded(
    length: Callable[[Slides], float],
    seconds: Callable[[float], float],
    by_frame: bool = False,
) -> Cost:
    """One program for all devices, each slide padded to the largest of the batch."""

    def step(slides, sizes, devices):
        index = np.concatenate(devices)
        return seconds(length(Slides(slides.area[index], slides.frame[index])))

    return Cost(lambda slides: slides.frame.prod(1) if by_frame else slides.area, step)


def step_seconds(
    cost: Cost, devices: int, per_device: int, packing: str, spread=1.0
) -> tuple[float, float]:
    """Seconds of a step on all devices, their all-reduce not counted, and of a step of
    one device alone that has as many slides as each of them, packed in the same way;
    means over many batches."""
    rng, batch = np.random.default_rng(0), devices * per_device
    together, alone = [], []
    for _ in range(max(2, -(-DRAWN // (WINDOW * batch)))):
        slides = draw(rng, WINDOW * batch, spread)
        sizes = cost.sizes(slides)
        for own in _batches(sizes, per_device, packing):
            alone.append(cost.step(slides, sizes, [own]))
        for index in _batches(sizes, batch, packing):
            own = index.reshape(devices, per_device)
            if packing != "as drawn":
                packed = spread_by_size(sizes[index].tolist(), devices)
                own = [index[mine] for mine in packed]
            together.append(cost.step(slides, sizes, own))
    return float(np.mean(together)), float(np.mean(alone))


def _batches(sizes: np.ndarray, batch: int, packing: str) -> np.ndarray:
    """Indices of the slides of each batch; of like sizes within a window of batches."""
    order = np.arange(len(sizes)).reshape(-1, WINDOW * batch)
    if packing == "like sizes":
        parts = [own[like_sizes(sizes[own].tolist(), batch)] for own in order]
        order = np.concatenate(parts)
    return order.reshape(-1, batch)


def costs(chip: str) -> Iterator[tuple[str, str, int, Cost]]:
    """(method, program that has its gradients, slides of a device, cost) on a chip."""
    report = json.loads((RESULTS / f"compiled_{chip}.json").read_text("utf-8"))
    rows = {(row["method"], row["program"]): row for row in report["rows"]}

    def seconds(method, program):
        row = rows[method, program]
        return row["cycles_s"] or row["roofline_s"]

    tiles = "streamed, 8 x 1,024 px, "
    both = [seconds("streaming_clam", tiles + end) for end in ("forward", "backward")]
    yield "streaming_clam", tiles, 1, tile_by_tile(sum(both), 1024 * 0.5e-3)
    method, step = "attention_sampling", "step, 64 crops x 4 slides"
    small, large = (
        seconds(method, step + size) + seconds(method, "select, overviews" + size)
        for size in ("", " of 28 mm")
    )
    rise = (large - small) / (28**2 - 20**2)
    frame = lambda slides: float(np.prod(slides.frame.max(0)))
    yield (
        method,
        step,
        4,
        padded(frame, lambda area: small + rise * (area - 20**2), True),
    )
    method, step = "attention_pooling", "step, 128 tiles x 4 slides"
    fixed = seconds(method, step)
    yield method, step, 4, padded(lambda _: 0.0, lambda _: fixed)
    step = "step, 100,000 x 1,024"
    for method in ("mean", "abmil", "clam_sb"):
        linear = functools.partial(np.multiply, seconds(method, step) / 100_000)
        yield method, step, 1, padded(functools.partial(_bag, 0.128), linear)
    for method, b in (("sasha hafed", 4), ("sasha policy", 8)):
        step = f"step, 1,000 tiles x {b} slides"
        first, last = seconds(method, step), seconds(method, step.replace("1,", "10,"))
        power = functools.partial(_power, first, math.log10(last / first))
        yield method, step, b, padded(functools.partial(_bag, 0.512), power)


def _bag(tile_mm: float, slides: Slides) -> int:
    """Length of a bag of the tiles of all tissue, padded to the longest."""
    return bucket(math.ceil(slides.area.max() / tile_mm**2), 256)


def _power(first: float, power: float, tiles: float) -> float:
    """Seconds of so many tiles, by those of 1,000 and a power."""
    return first * (tiles / 1000) ** power


@functools.cache
def gradient_bytes(method: str, step: str) -> int:
    """Bytes of the gradients of a method's step."""
    if method == "streaming_clam":
        (stage,) = stages_of(PRODUCTION.config(method))
        state = jax.eval_shape(stage.method.init, KEY, None)
    else:
        of_name = lambda one: (one.method, one.program) == (method, step)
        program = next(filter(of_name, programs()))  # the slowest to list are the last
        state = program.make(make_mesh(jax.devices()[:1]))[1][0]
    leaves = jax.tree.leaves(state.params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def ring_seconds(size: int, devices: int, chip: str) -> float:
    """The least time of an all-reduce in a ring: each device sends 2 (n - 1) / n of the
    bytes over the slowest of its links."""
    return 2 * (devices - 1) / devices * size / CHIPS[chip].link


def efficiency_row(
    chip: str, devices: int, method: str, step: str, slides: int, cost: Cost
) -> dict:
    """A row of the benchmark; `efficiency` and `step_s` are of slides shared out by
    size."""
    size = gradient_bytes(method, step)
    reduce_s = ring_seconds(size, devices, chip)

    def case(*packing):
        together, alone = step_seconds(cost, devices, slides, *packing)
        return together + reduce_s, alone / (together + reduce_s)

    row = {
        "part": "efficiency", "method": method, "chip": chip, "devices": devices,
        "processes": -(-devices // CHIPS[chip].of_host), "slides": slides,
    }  # fmt: skip
    row["step_s"], row["efficiency"] = case("by size")
    row |= {"collective_bytes": size, "all_reduce_s": reduce_s}
    row["as_drawn_s"], row["as_drawn"] = case("as drawn")
    row["like_sizes_s"], row["like_sizes"] = case("like sizes")
    if method == "streaming_clam":
        _, row["less_spread"] = case("by size", 0.8)
        _, row["more_spread"] = case("by size", 1.25)
    return row
