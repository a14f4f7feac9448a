"""One training on a cohort's features: fit, choose on validation, predict the test."""

import contextlib
import pathlib
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.experiment import Experiment, RunError
from experiments.sources import Source
from wsi_jax.data.cohort import SPLITS, Cohort, Row, in_split, label_ids
from wsi_jax.data.parallel import prefetch_to_device
from wsi_jax.evals.cost import Meter
from wsi_jax.evals.metrics import choose_threshold, slide_metrics
from wsi_jax.evals.metrics import predict as decide
from wsi_jax.run import WEIGHTS, Card, save_card
from wsi_jax.train.checkpoint import Checkpoints
from wsi_jax.train.compile import compile_method, replicate
from wsi_jax.train.log import MetricsLog
from wsi_jax.train.loop import Best, Train, fit
from wsi_jax.types import Bag, Method, Stage


class Predicted(NamedTuple):
    """A trained model's word on one slide.

    Attributes:
        row: of the manifest.
        probabilities: [c].
        called: class index at the threshold.
        attention: [n].
        flops: of the method.
        trace: what the method shows besides; None for nothing.
        others: probabilities [c] by the method's other ways to predict.
    """

    row: Row
    probabilities: np.ndarray
    called: int
    attention: np.ndarray
    flops: float
    trace: dict[str, np.ndarray] | None = None
    others: Mapping[str, np.ndarray] = types.MappingProxyType({})


def train(
    config: Experiment,
    cohort: Cohort,
    source: Source,
    stages: Sequence[Stage],
    folder: pathlib.Path,
    meter: Meter,
    progress,
) -> tuple[list[Predicted], float | None]:
    """Trains on train, chooses on val; returns test predictions and the threshold.

    Run again, it goes on from the last checkpoint.
    """
    parts = {name: in_split(cohort, name) for name in SPLITS}
    labels = label_ids(parts["train"])
    weights = class_weights(labels, len(cohort.classes))
    weights = weights if config.train.class_weights else None

    def validate(method, params):
        found = probabilities(method, params, source, parts["val"])
        return validation_metrics(*found)

    for stage in stages:
        method = compile_method(stage.method, source.mesh)
        with progress(f"training ({stage.name})", config.train.steps) as advance:
            params = fit_stage(
                config.train,
                method,
                lambda start: source.training(parts["train"], weights, start),
                lambda params, method=method: validate(method, params),
                folder / stage.name,
                source.mesh,
                source.put,
                meter,
                advance,
            )
    threshold = None
    if len(cohort.classes) == 2:
        truth, p = probabilities(method, params, source, parts["val"])
        threshold = choose_threshold(truth, p[:, 1])
    tested, called = parts["test"].rows, []
    with progress("test", len(tested)) as advance, meter.span("test"):
        found = predict(method, params, source, parts["test"])
        for row, (p, attention, flops, trace) in zip(tested, found, strict=True):
            label = int(decide(p[None], threshold)[0])
            called.append(Predicted(row, p, label, attention, flops, trace))
            advance(1)
    others = {
        name: probabilities(
            compile_method(other, source.mesh), params, source, parts["test"]
        )[1]
        for name, other in stages[-1].others.items()
    }
    called = [
        one._replace(others={name: p[i] for name, p in others.items()})
        for i, one in enumerate(called)
    ]
    meter.add(flops=sum(one.flops for one in called))
    source.charge(meter)
    tiling = config.tiling()
    card = Card(
        classes=cohort.classes,
        tiling=tiling,
        method=config.method.trained(),
        encoder="" if config.precomputed else tiling.encoder.provenance(),
        threshold=threshold,
        dim=source.dim,
    )
    save_card(folder, card)
    return called, threshold


def fit_stage(
    plan: Train,
    method: Method,
    stream: Callable[[int], Iterator[Bag]],
    validate: Callable[[Any], dict[str, float]],
    folder: pathlib.Path,
    mesh: Mesh,
    put: Callable[[Any], Any],
    meter: Meter,
    advance: Callable,
) -> Any:
    """Fits one stage, resuming; returns the parameters that validation liked best.

    Args:
        plan: of the training.
        method: compiled.
        stream: step -> its batch and all that follow.
        validate: params -> metrics.
        folder: of the stage.
        mesh: on all of whose devices the parameters lie in the end.
        put: a batch where the method wants it.
        meter: is charged with the device's seconds.
        advance: of a progress bar.
    """
    checkpoints = Checkpoints(folder / "state")
    kept = Checkpoints(folder / WEIGHTS)
    first = put(next(stream(0)))
    state = method.init(jax.random.key(plan.seed), first)
    best = Best()
    if found := checkpoints.restore(state):
        state, memory = found
        best = Best(**memory["best"])
    log = MetricsLog(folder / "metrics.jsonl", int(state.step))
    advance(int(state.step), before=True)
    batches = Feed(prefetch_to_device(stream(int(state.step)), put, 2), advance)

    def save(step, state, best):
        kept.wait()  # no checkpoint may know of a best step that is not on disk
        checkpoints.save(step, state, {"best": best._asdict()})

    began = time.perf_counter()
    # Closed even where training fails: the last checkpoint is whole then.
    with contextlib.closing(checkpoints), contextlib.closing(kept):
        state, best = fit(
            method,
            state,
            batches,
            plan,
            log=log,
            save=save,
            validate=validate,
            keep=lambda step, params: kept.save(step, params, {"step": step}),
            best=best,
        )
        meter.add(device_s=time.perf_counter() - began - batches.waited_s)
        kept.wait()
        found = kept.restore(state.params)
    if found is None:
        raise RunError(
            f"{folder / WEIGHTS} holds no weights: validation never had a "
            f"{plan.monitor.removeprefix('-')} that is a number; choose another "
            "--config.train.monitor"
        )
    return replicate(found[0], mesh)


def validation_metrics(labels: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """All metrics, at one half: the best step must not hang on a threshold."""
    half = 0.5 if p.shape[1] == 2 else None
    return {name: float(v) for name, v in slide_metrics(labels, p, half).items()}


def predict(
    method: Method, params, source: Source, part: Cohort
) -> Iterator[tuple[np.ndarray, np.ndarray, float, dict | None]]:
    """(probabilities [c], attention [n], flops, trace) of each slide, in order."""
    key = jax.random.key(0)
    for batch, lengths in source.evaluation(part):
        said = jax.device_get(method.predict(params, source.put(batch), key))
        p = np.asarray(jax.nn.softmax(said.logits.astype(np.float32)), np.float64)
        for i, n in enumerate(lengths):
            trace = said.trace and {name: v[i] for name, v in said.trace.items()}
            yield p[i], said.attention[i, :n], float(said.counts["flops"][i]), trace


def probabilities(
    method, params, source: Source, part: Cohort
) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] and probabilities [n c] of all slides of a part."""
    found = predict(method, params, source, part)
    return label_ids(part), np.stack([p for p, *_ in found])


def class_weights(labels: np.ndarray, c: int) -> np.ndarray:
    """Each slide's weight, so that classes weigh alike and the mean is 1."""
    count = np.bincount(labels, minlength=c)
    return (len(labels) / (c * count[labels])).astype(np.float32)


class Feed:
    """Batches for the loop; moves a progress bar and counts the seconds waited."""

    def __init__(self, batches: Iterator, advance):
        self.batches, self.advance, self.waited_s = batches, advance, 0.0

    def __next__(self):
        began = time.perf_counter()
        batch = next(self.batches)
        self.waited_s += time.perf_counter() - began
        self.advance(1)
        return batch

    def __iter__(self):
        return self
