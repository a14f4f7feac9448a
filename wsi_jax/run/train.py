"""One training on a cohort: its stages, a threshold from validation, the test."""

import itertools
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wsi_jax.data.cohort import SPLITS, Cohort, Row, in_split, label_ids
from wsi_jax.evals.cost import Meter
from wsi_jax.evals.metrics import predict as decide
from wsi_jax.evals.metrics import slide_metrics
from wsi_jax.evals.threshold import choose_threshold
from wsi_jax.ops import class_prior
from wsi_jax.provenance import config_hash
from wsi_jax.run.config import Experiment
from wsi_jax.run.fit_stage import StepAccount, fit_stage
from wsi_jax.run.inputs import Input
from wsi_jax.run.predictor import Card, save_card
from wsi_jax.slides.stain import StainRange
from wsi_jax.training.checkpoint import digest
from wsi_jax.training.compile import compile_each, compile_method
from wsi_jax.training.flops import executed
from wsi_jax.training.loop import Train
from wsi_jax.types import Compiled, Stage


class Predicted(NamedTuple):
    """A trained model's word on one slide.

    Attributes:
        row: of the manifest.
        probabilities: [c].
        called: class index at the threshold.
        attention: [n].
        flops: of the method.
        trace: what the method shows besides; None for nothing.
        others: probabilities [c] by the method's opponents and other ways to predict.
        fold: whose model predicted it, where every fold tests slides of its own.
    """

    row: Row
    probabilities: np.ndarray
    called: int
    attention: np.ndarray
    flops: float
    trace: dict[str, np.ndarray] | None = None
    others: Mapping[str, np.ndarray] = types.MappingProxyType({})
    fold: int | None = None

    def is_finite(self) -> bool:
        """Whether its probabilities are numbers, by every way to come by them."""
        ways = [self.probabilities, *self.others.values()]
        return bool(np.isfinite(ways).all())


class Predictions(NamedTuple):
    """The test slides as one training predicts them, and its thresholds.

    Attributes:
        slides: predictions.
        threshold: of best balanced accuracy on the validation slides; None where there
            are more than two classes.
        others: threshold of each opponent, chosen on its own validation probabilities.
    """

    slides: list[Predicted]
    threshold: float | None
    others: Mapping[str, float | None] = types.MappingProxyType({})


def train(
    config: Experiment,
    cohort: Cohort,
    source: Input,
    stages: Sequence[Stage],
    folder: pathlib.Path,
    meter: Meter,
    progress,
    *,
    stain: StainRange,
    unit: str = "",
) -> Predictions:
    """Trains on train, chooses on val, predicts test.

    Run again, it goes on from the last checkpoint. The run's card keeps `stain`, of the
    slides of train.
    """
    parts = {name: in_split(cohort, name) for name in SPLITS}
    params, rivals = None, {}
    learnt_from = config_hash(fingerprints(source, parts))
    for stage in stages:
        inside = folder / stage.name
        aside = stage.baseline and not stage.inherited
        with meter.span("opponents" if aside else "training"):
            learnt = train_stage(
                config, parts, source, stage, inside, meter, progress, params, unit
            )
        if stage.baseline:
            rivals[stage.name] = stage.method, learnt
        if aside:
            continue
        params = learnt
        if stage.distil:
            source = distilled(
                stage, params, source, parts, inside, meter, progress, unit
            )
    method = compile_method(stages[-1].method, source.mesh, source.read_crops)
    known = label_ids(parts["train"])
    log_prior = correction(config.plan(stages[-1]), known, len(cohort.classes))
    work = lambda: spent(source, meter)
    account = StepAccount(meter, f"{unit}test", work, 0, {})
    threshold = validation_threshold(method, params, source, parts["val"], log_prior)
    tested, called = parts["test"].rows, []
    with progress("test", len(tested)) as advance, meter.span("test"):
        found = predict(method, params, source, parts["test"], log_prior)
        for row, (p, attention, flops, trace) in zip(tested, found, strict=True):
            label = int(decide(p[None], threshold)[0])
            called.append(Predicted(row, p, label, attention, flops, trace))
            account.enter(0)
            advance(1)
    rivals |= {name: (other, params) for name, other in stages[-1].alternatives.items()}
    others, thresholds = {}, {}
    for name, (other, learnt) in rivals.items():
        compiled = compile_method(other, source.mesh, source.read_crops)
        opponent = compiled, learnt, source
        with meter.span("opponents"):
            rule = validation_threshold(*opponent, parts["val"], log_prior)
            p = probabilities(*opponent, parts["test"], log_prior)[1]
            thresholds[name], others[name] = rule, p
        account.enter(0)
    called = [
        one._replace(others={name: p[i] for name, p in others.items()})
        for i, one in enumerate(called)
    ]
    called = [one for one in called if one.is_finite()]
    source.clear_cache()
    tiling = config.tiling()
    card = Card(
        classes=cohort.classes,
        tiling=tiling,
        method=config.method.trained(),
        encoder="" if config.precomputed else tiling.encoder.provenance(),
        threshold=threshold,
        dim=source.dim,
        log_prior=log_prior,
        stain=stain,
        weights=digest(params),
        features=learnt_from,
    )
    save_card(folder, card)
    return Predictions(called, threshold, thresholds)


def train_stage(
    config: Experiment,
    parts: Mapping[str, Cohort],
    source: Input,
    stage: Stage,
    folder: pathlib.Path,
    meter: Meter,
    progress,
    earlier: Any,
    unit: str,
) -> Any:
    """Trains one stage, from what the one before has learnt; returns its parameters."""
    plan = config.plan(stage)
    method = compile_method(stage.method, source.mesh, source.read_crops)
    labels, c = label_ids(parts["train"]), len(parts["train"].classes)
    weights = class_weights(labels, c) if plan.class_weights else None
    if stage.validate:
        measure = compile_each(stage.validate, source.mesh)
        validate = lambda params: means(measure, params, source, parts["val"])
    else:
        log_prior = correction(plan, labels, c)
        validate = lambda params: validation_metrics(
            *probabilities(method, params, source, parts["val"], log_prior), log_prior
        )
    with progress(f"training ({stage.name})", plan.steps) as advance:
        return fit_stage(
            plan,
            method,
            lambda start: source.training_batches(parts["train"], plan, start, weights),
            validate,
            folder,
            source.mesh,
            source.put,
            meter,
            advance,
            earlier,
            fingerprints(source, parts),
            parts["train"].classes,
            f"{unit}{stage.name}",
            lambda: spent(source, meter),
        )


def fingerprints(source: Input, parts: Mapping[str, Cohort]) -> dict[str, str]:
    """Of the slides that decide what is learnt: it learns from some, others choose."""
    return source.fingerprints(parts["train"]) | source.fingerprints(parts["val"])


def distilled(
    stage: Stage,
    params: Any,
    source: Input,
    parts: Mapping[str, Cohort],
    folder: pathlib.Path,
    meter: Meter,
    progress,
    unit: str,
) -> Input:
    """Batches of what a trained stage makes of slides, each made once."""
    distil = compile_each(
        lambda params, bag, key: stage.distil(params, bag.x), source.mesh
    )
    slides = sum(len(part.rows) for part in parts.values())
    with progress(f"distilling ({stage.name})", slides) as advance:
        return source.distilled(
            list(parts.values()), distil, params, folder / "distilled",
            advance=advance, meter=meter, unit=f"{unit}{stage.name}/distilled",
        )  # fmt: skip


def spent(source: Input, meter: Meter) -> dict[str, int]:
    """What this process has computed and read so far; its slides are entered."""
    for name in source.slides_read():  # each counts once, however many folds read it
        meter.begin(f"slides/{name}", slides=1)
    return executed() | source.work()


def means(
    measure: Callable, params: Any, source: Input, part: Cohort
) -> dict[str, float]:
    """Over the slides of a part, of what `measure` tells of each."""
    key, found = jax.random.key(0), []
    for batch, lengths in source.evaluation_batches(part):
        told = jax.device_get(measure(params, source.put(batch), key))
        found += [{k: v[i] for k, v in told.items()} for i in range(len(lengths))]
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def correction(plan: Train, labels: np.ndarray, c: int) -> tuple[float, ...]:
    """What takes a training's shift of the class prior out of logits; () for none.

    Args:
        plan: of the training.
        labels: class of each training slide, or tile [n].
        c: number of classes.
    """
    return class_prior.log_prior(labels, c) if plan.classes_equal else ()


def validation_metrics(
    labels: np.ndarray, p: np.ndarray, log_prior: Sequence[float] = ()
) -> dict[str, float]:
    """All metrics, at what was one half before `log_prior` was added to logits.

    The best step must not hang on a threshold.
    """
    half = None
    if p.shape[1] == 2:
        half = float(class_prior.probabilities(np.zeros(2), log_prior)[1])
    return {name: float(v) for name, v in slide_metrics(labels, p, half).items()}


def predict(
    method: Compiled,
    params,
    source: Input,
    part: Cohort,
    log_prior: Sequence[float] = (),
) -> Iterator[tuple[np.ndarray, np.ndarray, float, dict | None]]:
    """(probabilities [c], attention [n], flops, trace) of each slide, in order."""
    key = jax.random.key(0)
    pairs, again = itertools.tee(source.evaluation_batches(part))
    batches = (source.put(batch) for batch, _ in pairs)
    predictions = method.predictions(params, batches, key)
    for one, (_, lengths) in zip(predictions, again, strict=True):
        one = jax.device_get(one)
        p = class_prior.probabilities(one.logits, log_prior)
        for i, n in enumerate(lengths):
            trace = one.trace and {name: v[i] for name, v in one.trace.items()}
            yield p[i], one.attention[i, :n], float(one.counts["flops"][i]), trace


def probabilities(
    method, params, source: Input, part: Cohort, log_prior: Sequence[float] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] and probabilities [n c] of all slides of a part."""
    found = predict(method, params, source, part, log_prior)
    return label_ids(part), np.stack([p for p, *_ in found])


def validation_threshold(
    method: Compiled,
    params: Any,
    source: Input,
    part: Cohort,
    log_prior: Sequence[float] = (),
) -> float | None:
    """The threshold of best balanced accuracy; None with more than two classes."""
    if len(part.classes) != 2:
        return None
    labels, p = probabilities(method, params, source, part, log_prior)
    return choose_threshold(labels, p[:, 1])


def class_weights(labels: np.ndarray, c: int) -> np.ndarray:
    """Each slide's weight, so that classes weigh alike and the mean is 1."""
    count = np.bincount(labels, minlength=c)
    return (len(labels) / (c * count[labels])).astype(np.float32)
