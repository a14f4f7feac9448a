"""One training on a cohort: its stages, a threshold from validation, the test."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wsi_jax.data.cohort import SPLITS, Cohort, in_split
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.evals.metrics import predict as decide
from wsi_jax.files import AnyPath
from wsi_jax.provenance import config_hash
from wsi_jax.run.cohort_predictions import (
    Model,
    Predicted,
    Predictions,
    class_weights,
    mean_metrics,
    prior_correction,
)
from wsi_jax.run.config import Experiment
from wsi_jax.run.cost_account import StepAccount
from wsi_jax.run.fit_stage import StageBatches, fit_stage
from wsi_jax.run.inputs import Input
from wsi_jax.run.model_card import Card, save_card
from wsi_jax.run.run_folder import hdf5_folder
from wsi_jax.slides.stain import StainRange
from wsi_jax.training.checkpoint import digest
from wsi_jax.training.compile import compile_each
from wsi_jax.training.flops import executed
from wsi_jax.training.processes import exchange_json, first_does
from wsi_jax.types import Stage


def train(
    config: Experiment,
    cohort: Cohort,
    source: Input,
    stages: Sequence[Stage],
    folder: AnyPath,
    meter: Meter,
    progress: Callable,
    *,
    stain: StainRange,
    unit: str = "",
) -> Predictions:
    """Trains on train, chooses on val, predicts test.

    Run again, it goes on from the last checkpoint.

    Args:
        config: the experiment.
        cohort: slides with their splits.
        source: makes batches of them.
        stages: stages of the method.
        folder: where checkpoints and the model's card are written.
        meter: is charged.
        progress: as `wsi_jax.run.progress.progress`.
        stain: stains of the slides of train, for the card.
        unit: prefix of the meter's units.
    """
    training = Training(config, cohort, source, folder, meter, progress, unit)
    fingerprint = config_hash(training.fingerprints())
    params, baselines = training.fit(stages)
    tested = training.test(stages[-1], params, baselines)
    training.input.free_memory()
    tiling = config.tiling()
    card = Card(
        classes=cohort.classes,
        tiling=tiling,
        method=config.method.trained(),
        encoder="" if config.precomputed else tiling.encoder.provenance(),
        threshold=tested.threshold,
        dim=training.input.dim,
        log_prior=training.log_prior(stages[-1]),
        stain=stain,
        weights=digest(params),
        features=fingerprint,
    )
    first_does(lambda: save_card(folder, card))
    return tested


class Training:
    """The stages of a method and their test; arguments as those of `train`.

    Attributes:
        input: makes batches of slides, for the stage at hand.
    """

    def __init__(
        self,
        config: Experiment,
        cohort: Cohort,
        source: Input,
        folder: AnyPath,
        meter: Meter,
        progress: Callable,
        unit: str,
    ):
        self.input, self._config, self._folder = source, config, folder
        self._meter, self._progress, self._unit = meter, progress, unit
        self._entered = set()
        self._parts = {name: in_split(cohort, name) for name in SPLITS}

    def fingerprints(self) -> dict[str, str]:
        """Hashes of the slides that it learns from, and of those that choose."""
        parts = self._parts
        return self.input.fingerprints(parts["train"]) | self.input.fingerprints(
            parts["val"]
        )

    def log_prior(self, stage: Stage) -> tuple[float, ...]:
        """The correction of a stage's class prior."""
        part = self._parts["train"]
        return prior_correction(
            self._config.stage_train(stage), part.targets, len(part.classes)
        )

    def fit(self, stages: Sequence[Stage]) -> tuple[Any, dict[str, tuple]]:
        """Trains all stages.

        Returns:
            The last one's parameters, and (method, parameters) of each baseline.
        """
        params, baselines = None, {}
        for stage in stages:
            aside = stage.baseline and not stage.inherited
            with self._meter.span("opponents" if aside else "training"):
                learnt = self._fit_stage(stage, params)
            if stage.baseline:
                baselines[stage.name] = stage.method, learnt
            if aside:
                continue
            params = learnt
            if stage.distil:
                self._distil(stage, params)
        return params, baselines

    def _fit_stage(self, stage: Stage, earlier: Any) -> Any:
        """Trains a stage from the parameters of the one before; returns its own."""
        plan, source, part = (
            self._config.stage_train(stage),
            self.input,
            self._parts["train"],
        )
        method = source.compiled(stage.method)
        weights = None
        if plan.class_weights:
            weights = class_weights(part.targets, len(part.classes))
        if stage.validate:
            measure = compile_each(stage.validate, source.mesh)
            validate = lambda params: mean_metrics(
                measure, params, source, self._parts["val"]
            )
        else:
            log_prior = self.log_prior(stage)
            validate = lambda params: Model(method, params, source, log_prior).metrics(
                self._parts["val"]
            )
        batches = StageBatches(
            stream=lambda start: source.training_batches(part, plan, start, weights),
            put=source.put,
            mesh=source.mesh,
            fingerprints=self.fingerprints(),
            classes=part.classes,
        )
        account = StepAccount(self._meter, f"{self._unit}{stage.name}", self._work)
        bar = self._progress(f"training ({stage.name})", plan.steps, "compiling")
        with bar as advance:
            return fit_stage(
                plan, method, batches, validate, self._folder / stage.name,
                account=account, advance=advance, earlier=earlier,
            )  # fmt: skip

    def _distil(self, stage: Stage, params: Any) -> None:
        """From now on, batches are of what a trained stage makes of slides."""
        distil = compile_each(
            lambda params, bag, key: stage.distil(params, bag.x), self.input.mesh
        )
        parts = list(self._parts.values())
        folder = hdf5_folder(self._config, self._folder)
        slides = sum(len(part.rows) for part in parts)
        with self._progress(f"distilling ({stage.name})", slides) as advance:
            self.input = self.input.distilled(
                parts, distil, params, folder / stage.name / "distilled",
                advance=advance, meter=self._meter,
                unit=f"{self._unit}{stage.name}/distilled",
            )  # fmt: skip

    def test(
        self, stage: Stage, params: Any, baselines: Mapping[str, tuple]
    ) -> Predictions:
        """Predicts the test slides, also by baselines and by other ways to predict."""
        val, test = self._parts["val"], self._parts["test"]
        log_prior = self.log_prior(stage)

        def model_of(method, params):
            return Model(self.input.compiled(method), params, self.input, log_prior)

        account = StepAccount(self._meter, f"{self._unit}test", self._work)
        account.begin(0, {})
        model, slides = model_of(stage.method, params), []
        bar = self._progress("test", len(test.rows), "compiling")
        with bar as advance:
            threshold = model.threshold(val)
            with self._meter.span("test"):
                predicted = zip(test.rows, model.predict(test), strict=True)
                for row, (p, *others) in predicted:
                    label = int(decide(p[None], threshold)[0])
                    slides.append(Predicted(row, p, label, *others))
                    account.record(0)
                    advance(1)
        alternatives = {name: (m, params) for name, m in stage.alternatives.items()}
        thresholds, probabilities = {}, {}
        for name, other in {**baselines, **alternatives}.items():
            with self._meter.span("opponents"):
                model = model_of(*other)
                thresholds[name] = model.threshold(val)
                probabilities[name] = model.probabilities(test)
            account.record(0)
        slides = [
            one._replace(others={name: p[i] for name, p in probabilities.items()})
            for i, one in enumerate(slides)
        ]
        finite = [one for one in slides if one.is_finite()]
        return Predictions(finite, threshold, thresholds)

    def _work(self) -> dict[str, int]:
        """What this process has computed and read so far; its slides are entered."""
        new = [n for n in self.input.slides_read() if n not in self._entered]
        for names in exchange_json(new):
            for name in names:  # once, however many folds and processes read it
                self._meter.begin(f"slides/{name}", slides=1)
        self._entered.update(new)
        return executed() | self.input.work()
