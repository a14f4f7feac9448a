"""Predictions of the slides of a cohort by a method as it is trained."""

import itertools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.evals.metrics import slide_metrics
from wsi_jax.evals.threshold import choose_threshold
from wsi_jax.ops import class_prior
from wsi_jax.run.inputs import Input
from wsi_jax.training.loop import Train
from wsi_jax.training.processes import gather
from wsi_jax.types import Compiled


class Predicted(NamedTuple):
    """A trained model's prediction of one slide of a cohort.

    Attributes:
        row: the slide's row of the manifest.
        probabilities: [c].
        called: class index at the threshold.
        attention: [n].
        flops: FLOPs of the method.
        trace: what the method shows besides; None for nothing.
        others: probabilities [c] by the method's baselines and other ways to predict.
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
        """Whether all of its probabilities are numbers."""
        every = [self.probabilities, *self.others.values()]
        return bool(np.isfinite(every).all())


class Predictions(NamedTuple):
    """The test slides as one training predicts them, and its thresholds.

    Attributes:
        slides: predictions.
        threshold: threshold of best balanced accuracy on the validation slides; None
            where there are more than two classes.
        others: threshold of each baseline, chosen on its own validation probabilities.
    """

    slides: list[Predicted]
    threshold: float | None
    others: Mapping[str, float | None] = types.MappingProxyType({})


class Model(NamedTuple):
    """A method with its parameters, and the input that it predicts from.

    Attributes:
        method: compiled.
        params: its parameters.
        input: makes batches of slides.
        log_prior: correction added to each class's logit; () for none.
    """

    method: Compiled
    params: Any
    input: Input
    log_prior: tuple[float, ...] = ()

    def predict(
        self, part: Cohort
    ) -> Iterator[tuple[np.ndarray, np.ndarray, float, dict | None]]:
        """(probabilities [c], attention [n], flops, trace) of each slide, in order."""
        pairs, again = itertools.tee(self.input.evaluation_batches(part))
        batches = (self.input.put(batch) for batch, _ in pairs)
        key = jax.random.key(0)
        predictions = self.method.predictions(self.params, batches, key)
        for prediction, (_, lengths) in zip(predictions, again, strict=True):
            prediction = gather(prediction)
            p = class_prior.probabilities(prediction.logits, self.log_prior)
            flops, trace = prediction.counts["flops"], prediction.trace
            for i, n in enumerate(lengths):
                own = trace and {name: v[i] for name, v in trace.items()}
                yield p[i], prediction.attention[i, :n], float(flops[i]), own

    def probabilities(self, part: Cohort) -> np.ndarray:
        """Probabilities [n c] of all slides of a part."""
        return np.stack([p for p, *_ in self.predict(part)])

    def threshold(self, part: Cohort) -> float | None:
        """The threshold of best balanced accuracy; None with more than two classes."""
        if len(part.classes) != 2:
            return None
        return choose_threshold(part.targets, self.probabilities(part)[:, 1])

    def metrics(self, part: Cohort) -> dict[str, float]:
        """All metrics of a part, as `validation_metrics`."""
        p = self.probabilities(part)
        return validation_metrics(part.targets, p, self.log_prior)


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


def mean_metrics(
    measure: Callable, params: Any, input: Input, part: Cohort
) -> dict[str, float]:
    """Means, over the slides of a part, of what `measure` gives for each.

    Args:
        measure: (params, batch, key) -> metrics, each [b], compiled.
        params: parameters of a method.
        input: makes batches of slides.
        part: the slides.
    """
    key, slides = jax.random.key(0), []
    for batch, lengths in input.evaluation_batches(part):
        metrics = gather(measure(params, input.put(batch), key))
        slides += [{k: v[i] for k, v in metrics.items()} for i in range(len(lengths))]
    return {name: float(np.mean([one[name] for one in slides])) for name in slides[0]}


def class_weights(labels: np.ndarray, c: int) -> np.ndarray:
    """Each slide's weight, so that classes weigh alike and the mean is 1."""
    count = np.bincount(labels, minlength=c)
    return (len(labels) / (c * count[labels])).astype(np.float32)


def prior_correction(plan: Train, labels: np.ndarray, c: int) -> tuple[float, ...]:
    """What takes a training's shift of the class prior out of logits; () for none.

    Args:
        plan: how the training goes.
        labels: class of each training slide, or tile [n].
        c: number of classes.
    """
    return class_prior.log_prior(labels, c) if plan.classes_equal else ()
