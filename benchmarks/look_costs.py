"""Seconds of a method that reads slides from disk, measured and predicted.

A training step and a prediction end to end: batches of as many slides for every method,
the next one read while one is learnt from, medians over batches once all is compiled.
A cost model predicts the same from its parts, each measured alone.
"""

import copy
import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.device import seconds
from wsi_jax.data.cohort import Cohort
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.provenance import cores
from wsi_jax.run.config import Experiment
from wsi_jax.run.extract.slide_features import find_tiles
from wsi_jax.run.inputs import CropInput
from wsi_jax.run.progress import progress
from wsi_jax.training.compile import compile_method
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Task

BATCH = 8  # slides, of a timed step as of timed predictions
CROPS = 32  # of each slide, to time the parts


class Cost(NamedTuple):
    """What one method takes; all but `train_s` and the parts of one slide, on average.

    Attributes:
        train_s: seconds of a training step.
        infer_s: seconds of a slide's prediction.
        tiles: tiles read in a training step.
        predicted: tiles read for a prediction.
        tissue_s: seconds of the search for tissue.
        read_s: seconds of a crop's reading.
        forward_s: seconds of a crop's forward pass.
        overview_s: seconds of an overview's reading.
        look_s: seconds of the attention on it.
    """

    train_s: float
    infer_s: float
    tiles: float
    predicted: float
    tissue_s: float
    read_s: float
    forward_s: float
    overview_s: float = 0.0
    look_s: float = 0.0

    def step_s(self, passes: int) -> float:
        """A slide's seconds of a training step: `passes` forward passes of its tiles,
        four of the overview, from which crops are drawn before it is learnt from."""
        tiles = self.tiles * (self.read_s + passes * self.forward_s)
        return tiles + self.overview_s + 4 * self.look_s

    def prediction_s(self) -> float:
        """A prediction's seconds."""
        tiles = self.predicted * (self.read_s + self.forward_s)
        return tiles + self.overview_s + self.look_s


def cost(config: Experiment, part: Cohort, batches: int) -> Cost:
    """Measures a method on some slides; whatever is to be compiled is compiled before.

    Every batch is read anew, by as many threads as there are cores.

    Raises:
        ValueError: too few slides for two batches, of which the first is not counted.
    """
    if len(part.rows) < 2 * BATCH:
        raise ValueError(f"{len(part.rows)} slides: {2 * BATCH} or more can be timed")
    meter, config = Meter(), copy.deepcopy(config)
    config.reading.threads, config.loading.cache_gib = cores(), 0.0
    config.train.batch = BATCH
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
    training = lambda: source.training_batches(part, config.train, 0)
    state = method.init(jax.random.key(0), next(training()))
    for _ in range(2):  # the first time compiles
        steps = itertools.islice(method.steps(state, training()), batches)
        step_s, states = intervals(steps)
        state = states[-1][0]
    for _ in range(2):
        bags = (bag for bag, _ in source.evaluation_batches(part))
        predictions = method.predictions(state.params, bags, jax.random.key(0))
        batch_s, predictions = intervals(predictions)
    predicted = float(np.mean([one.counts["tiles"] for one in predictions]))
    return Cost(
        statistics.median(step_s[1:]),
        statistics.median(batch_s[1:]) / BATCH,
        float(getattr(config.method, "crops", predicted)),
        predicted,
        meter.as_dict()["span.tiling.wall_s"] / len(part.rows),
        **parts(config, source, part, state.params),
    )


def intervals(stream: Iterable) -> tuple[list[float], list[Any]]:
    """Seconds until each item of a stream is computed, and the items."""
    spent, items, began = [], [], time.perf_counter()
    for item in stream:
        items.append(jax.block_until_ready(item))
        spent.append(time.perf_counter() - began)
        began = time.perf_counter()
    return spent, items


def parts(config, source, part, params) -> dict[str, float]:
    """Seconds of the cost model's parts, each alone: the least of three tries."""
    method, views = config.method, list(source.streamed_slides(part))[:BATCH]
    mpp, overview_mpp = method.reads()[0], config.grid.mpp
    side = method.cells(overview_mpp, config.grid.size_px).crop_px
    rng = np.random.default_rng(0)

    def read():
        for view in views:
            for yx in rng.integers(0, np.array(view.shape) - 1, (CROPS, 2)):
                view.crop((yx * overview_mpp / mpp).astype(int).tolist(), side, mpp)

    encode = jax.jit(method.trunk.make().apply)
    crops = np.zeros((CROPS * BATCH, side, side, 3), np.uint8)
    least = lambda call: min(seconds(call, 3)) / BATCH
    spent = {
        "read_s": least(read) / CROPS,
        "forward_s": least(lambda: encode(params["trunk"], crops)) / CROPS,
    }
    if "look" not in params:
        return spent
    batch, _ = next(source.evaluation_batches(part))
    ratios = (1,) * len(method.mpps)
    net = method.overview.make(config.grid.size_px, ratios, np.float32)
    attend = jax.jit(net.apply)
    look = lambda: attend(params["look"], batch.x.overview, batch.mask)
    overviews = lambda: [view.whole(overview_mpp) for view in views]
    return spent | {"overview_s": least(overviews), "look_s": least(look)}


def speed(regime: str, ours: Cost, theirs: Sequence[Cost], passes: int) -> dict:
    """One row without AUCs: a method beside others, whose seconds are summed.

    Args:
        regime: what is compared.
        ours: the method's.
        theirs: that of patch-all at each of its magnifications.
        passes: forward passes that a training step takes as long as.
    """
    total = lambda seconds: sum(map(seconds, theirs))
    ratio = lambda seconds: total(seconds) / seconds(ours)
    train, infer = (lambda c: c.train_s), (lambda c: c.infer_s)
    return {
        "regime": regime,
        "crops": ours.tiles,
        "crops_verdict": ours.predicted,
        "tiles": total(lambda c: c.tiles),
        "train_step_s": ours.train_s,
        "train_step_s_patch_all": total(train),
        "infer_slide_s": ours.infer_s,
        "infer_slide_s_patch_all": total(infer),
        "tissue_slide_s": ours.tissue_s,
        "train_speedup": ratio(train),
        "infer_speedup": ratio(infer),
        "infer_speedup_with_tissue": ratio(lambda c: c.infer_s + c.tissue_s),
        "predicted_train_speedup": ratio(lambda c: c.step_s(passes)),
        "predicted_infer_speedup": ratio(Cost.prediction_s),
        "read_crop_ms": 1e3 * ours.read_s,
        "forward_crop_ms": 1e3 * ours.forward_s,
        "read_overview_ms": 1e3 * ours.overview_s,
        "look_ms": 1e3 * ours.look_s,
    }
