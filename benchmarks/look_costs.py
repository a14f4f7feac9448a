"""Seconds of a method that reads slides from disk, measured and predicted.

A training step and a verdict end to end: batches of as many slides for every method,
the next one read while one is learnt from, medians over batches once all is compiled.
What a cost model would have predicted of its parts, each measured alone, stands beside.
"""

import copy
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from wsi_jax.data.cohort import Cohort
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.provenance import cores
from wsi_jax.run.config import Experiment
from wsi_jax.run.inputs import CropInput
from wsi_jax.run.progress import progress
from wsi_jax.run.slide_features import find_tiles
from wsi_jax.training.compile import compile_method, make_mesh
from wsi_jax.types import Task

BATCH = 8  # slides, of a timed step as of timed verdicts


class Cost(NamedTuple):
    """What one method takes.

    Attributes:
        train_s: seconds of a training step.
        infer_s: seconds of a slide's verdict.
        tiles: read of a slide in a training step, on average.
        judged: read of it for a verdict.
        tissue_s: seconds of the search for tissue, a slide.
        parts: seconds of a crop's reading, its forward pass, an overview's reading and
            the look at it.
    """

    train_s: float
    infer_s: float
    tiles: float
    judged: float
    tissue_s: float
    parts: tuple[float, float, float, float]


def timed(config: Experiment) -> Experiment:
    """In batches of as many slides, each read anew, as where they are many, by as many
    threads as there are cores."""
    config = copy.deepcopy(config)
    config.reading.threads = cores()
    config.train.batch, config.loading.cache_gib = BATCH, 0.0
    return config


def cost(config: Experiment, part: Cohort, batches: int) -> Cost:
    """Measures a method on some slides; whatever is to be compiled is compiled before.

    Args:
        config: of the method.
        part: slides.
        batches: of a training, and of verdicts.

    Raises:
        ValueError: too few slides for two batches, of which the first is not counted.
    """
    if len(part.rows) < 2 * BATCH:
        raise ValueError(f"{len(part.rows)} slides: {2 * BATCH} or more can be timed")
    meter, config = Meter(), timed(config)
    whole = min(batches, len(part.rows) // BATCH)
    part = part._replace(rows=part.rows[: BATCH * whole])
    records = find_tiles(
        part.rows, config.tiling(), "streamed", reading=config.reading, meter=meter,
        progress=progress,
    )  # fmt: skip
    mesh = make_mesh(jax.devices()[:1])
    slides = [record.slide for record in records]
    source = CropInput.from_config(config, mesh, slides)
    tx = config.train.optimiser.make(config.train.steps)
    (stage,) = config.stages(Task(part.classes), tx)
    method = compile_method(stage.method, mesh, source.read_crops)
    state = method.init(
        jax.random.key(0), next(source.training_batches(part, config.train, 0))
    )
    tiles, steps, verdicts = [], [], []
    for _ in range(2):  # the first time compiles
        steps.clear()
        stream = source.training_batches(part, config.train, 0)
        taken = itertools.islice(method.steps(state, stream), batches)
        began = time.perf_counter()
        for after, metrics in taken:
            state = jax.block_until_ready((after, metrics))[0]
            steps.append(time.perf_counter() - began)
            began = time.perf_counter()
    for _ in range(2):
        verdicts.clear()
        began = time.perf_counter()
        bags = (bag for bag, _ in source.evaluation_batches(part))
        predictions = method.predictions(state.params, bags, jax.random.key(0))
        for prediction in predictions:
            jax.block_until_ready(prediction.logits)
            tiles += prediction.counts["tiles"].tolist()
            verdicts.append(time.perf_counter() - began)
            began = time.perf_counter()
    return Cost(
        statistics.median(steps[1:]),
        statistics.median(verdicts[1:]) / BATCH,
        float(getattr(config.method, "crops", np.mean(tiles))),
        float(np.mean(tiles)),
        meter.as_dict()["span.tiling.wall_s"] / len(part.rows),
        parts(config, source, part, state.params),
    )


def parts(config, source, part, params) -> tuple[float, float, float, float]:
    """Seconds of the cost model's parts, each alone: the least of three tries."""
    method, views = config.method, list(source.streamed_slides(part))[:BATCH]
    n, mpp = 32, method.reads()[0]
    side = method.cells(config.grid.mpp, config.grid.size_px).crop_px
    rng = np.random.default_rng(0)

    def read():
        for view in views:
            for yx in rng.integers(0, np.array(view.shape) - 1, (n, 2)):
                view.crop((yx * config.grid.mpp / mpp).astype(int).tolist(), side, mpp)

    def overviews():
        for view in views:
            view.whole(config.grid.mpp)

    encode = jax.jit(method.trunk.make().apply)
    crops = np.zeros((n * BATCH, side, side, 3), np.uint8)
    net_look = lambda: 0
    if "look" in params:
        batch, _ = next(source.evaluation_batches(part))
        cell = config.grid.size_px
        net = method.overview.make(cell, (1,) * len(method.mpps), np.float32)
        attend = jax.jit(net.apply)
        net_look = lambda: attend(params["look"], batch.x.overview, batch.mask)
    forward = lambda: encode(params["trunk"], crops)
    return (
        least(read) / (n * BATCH),
        least(forward) / (n * BATCH),
        least(overviews) / BATCH if "look" in params else 0.0,
        least(net_look) / BATCH,
    )


def least(call) -> float:
    """Seconds of the quickest of three calls, after one that compiles."""
    jax.block_until_ready(call())
    tries = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(call())
        tries.append(time.perf_counter() - began)
    return min(tries)


def predicted(ours: Cost, theirs: Sequence[Cost], passes: int) -> dict[str, float]:
    """The cost model's ratios: reading, and three forward passes for a training step,
    one where the trunk is held; the look costs four, since it is drawn from before it
    is trained."""
    of = lambda c, tiles, times, look: (
        tiles * (c.parts[0] + times * c.parts[1]) + (c.parts[2] + look * c.parts[3])
    )
    step = lambda c: of(c, c.tiles, passes, 4)
    verdict = lambda c: of(c, c.judged, 1, 1)
    ratio = lambda seconds: sum(map(seconds, theirs)) / seconds(ours)
    return {
        "predicted_train_speedup": ratio(step),
        "predicted_infer_speedup": ratio(verdict),
    }


def speed(regime: str, ours: Cost, theirs: Sequence[Cost], passes: int) -> dict:
    """One row, without AUCs."""
    total = lambda name: sum(getattr(c, name) for c in theirs)
    whole = lambda c: c.infer_s + c.tissue_s
    return {
        "regime": regime,
        "crops": ours.tiles,
        "crops_verdict": ours.judged,
        "tiles": total("tiles"),
        "train_step_s": ours.train_s,
        "train_step_s_patch_all": total("train_s"),
        "infer_slide_s": ours.infer_s,
        "infer_slide_s_patch_all": total("infer_s"),
        "tissue_slide_s": ours.tissue_s,
        "train_speedup": total("train_s") / ours.train_s,
        "infer_speedup": total("infer_s") / ours.infer_s,
        "infer_speedup_with_tissue": sum(map(whole, theirs)) / whole(ours),
        **predicted(ours, theirs, passes),
        "read_crop_ms": 1e3 * ours.parts[0],
        "forward_crop_ms": 1e3 * ours.parts[1],
        "read_overview_ms": 1e3 * ours.parts[2],
        "look_ms": 1e3 * ours.parts[3],
    }
