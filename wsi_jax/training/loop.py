"""The training loop of any method: steps, logs, validation, stopping, checkpoints."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import optax

from wsi_jax.config_fields import COUNT, SEED, FieldError
from wsi_jax.training.optimiser import Optimiser
from wsi_jax.types import Compiled, TrainState


@dataclasses.dataclass(kw_only=True)
class Train:
    """Length of a training, and when it is validated and saved.

    Attributes:
        steps: greatest number of batches.
        batch: slides in a batch, over all devices.
        seed: seed of the initial parameters, dropout and the order of slides.
        optimiser: AdamW and its schedule.
        balanced: draw classes equally often, rather than every slide once an epoch.
        class_weights: weigh each class by the inverse of its frequency; not together
            with `balanced`, which has the same effect.
        log_every: steps between two lines of metrics.jsonl.
        validate_every: steps between two validations.
        monitor: metric that validation must raise; prefix "-" to lower it.
        patience: validations without a better one before stopping; 0 never stops early.
        save_every: steps between checkpoints.
    """

    steps: int = 2000
    batch: int = 4
    seed: int = 0
    optimiser: Optimiser = dataclasses.field(default_factory=Optimiser)
    balanced: bool = False
    class_weights: bool = True
    log_every: int = 20
    validate_every: int = 100
    monitor: str = "-log_loss"
    patience: int = 10
    save_every: int = 100

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **{"steps": COUNT, "batch": COUNT, "seed": SEED},
        **{"log_every": COUNT, "validate_every": COUNT, "save_every": COUNT},
    }

    @property
    def classes_equal(self) -> bool:
        """Whether all classes, rare ones too, have the same share of the loss."""
        return self.balanced or self.class_weights

    def validate(self) -> None:
        """Refuses training without an update, or that weighs rare classes twice."""
        check_updates(self.steps, self.optimiser)
        if self.balanced and self.class_weights:
            raise ValueError(
                "--config.train.balanced=True and --config.train.class_weights=True: "
                "each of them gives all classes an equal part in the loss, and both "
                "give rare ones more; add --noconfig.train.class_weights, or leave "
                "--config.train.balanced out"
            )


@dataclasses.dataclass(kw_only=True)
class StageConfig:
    """Length and optimiser of one stage of several; the rest is that of `Train`.

    Attributes:
        steps: batches.
        batch: slides in a batch.
        validate_every: steps between two validations.
        optimiser: AdamW and its schedule.
    """

    steps: int = 2000
    batch: int = 4
    validate_every: int = 100
    optimiser: Optimiser = dataclasses.field(default_factory=Optimiser)

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = dict.fromkeys(
        ("steps", "batch", "validate_every"), COUNT
    )

    def validate(self) -> None:
        """Refuses an optimiser that waits for more batches than there are."""
        check_updates(self.steps, self.optimiser)

    def make_optimiser(self, times: int = 1) -> optax.GradientTransformation:
        """The stage's optimiser, for so many updates a batch."""
        return self.optimiser.make(times * self.steps)

    def overrides(self, **more: Any) -> dict[str, Any]:
        """The fields of `Train` that this stage replaces."""
        own = dataclasses.fields(StageConfig)
        return {field.name: getattr(self, field.name) for field in own} | more


def check_updates(steps: int, optimiser: Optimiser) -> None:
    """Refuses an optimiser that waits for more batches than there are."""
    if 0 < steps < optimiser.accumulate:
        raise FieldError(
            "optimiser.accumulate",
            f"no update is made in {steps} steps; lower it, or raise the steps",
        )


class DivergedError(ArithmeticError):
    """The loss is not a number any more."""


class Best(NamedTuple):
    """The best validation so far, and the number of validations after it."""

    step: int = 0
    value: float = -math.inf
    since: int = 0

    def after(self, step: int, value: float) -> "Best":
        if value > self.value:
            return Best(step, value, 0)
        return self._replace(since=self.since + 1)


NOTHING = Best()


def fit(
    method: Compiled,
    state: TrainState,
    batches: Iterator,
    train: Train,
    *,
    log: Callable,
    save: Callable,
    validate: Callable | None = None,
    keep: Callable | None = None,
    best: Best = NOTHING,
    advance: Callable[[], None] = lambda: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, Best]:
    """Runs `method` from `state.step` until `train.steps` or until patience is out.

    Args:
        state: donated; use the returned one.
        batches: starts at the batch for `state.step`.
        log: (step, metrics) -> None.
        save: (step, state, best) -> None.
        validate: params -> metrics, one of them `train.monitor`.
        keep: (step, params) -> None, called when validation is better than ever.
        best: of the run that `state` resumes.
        interrupted: () -> whether to end after this step, which is saved.

    Raises:
        DivergedError: the loss is not finite; nothing is saved after that.
    """
    first = int(state.step)
    if validate and train.patience and best.since >= train.patience:
        return state, best
    numbers = range(first + 1, train.steps + 1)  # before batches: none is left over
    steps = zip(numbers, method.steps(state, batches), strict=False)
    for step, (state, metrics) in steps:
        advance()
        due = lambda every, step=step: step % every == 0 or step == train.steps
        halt = interrupted()
        every = train.log_every, train.save_every, train.validate_every
        if halt or any(map(due, every)):
            metrics = jax.device_get(metrics)
            _check_finite(step, metrics)
        if due(train.log_every):
            log(step, {f"train.{name}": float(v) for name, v in metrics.items()})
        if validate and due(train.validate_every):
            results = validate(state.params)
            log(step, {f"val.{name}": v for name, v in results.items()})
            best = best.after(step, monitored(results, train.monitor))
            if best.step == step and keep:
                keep(step, state.params)
        stop = validate and train.patience and best.since >= train.patience
        if due(train.save_every) or stop or halt:
            save(step, state, best)
        if stop or halt:
            break
    return state, best


def monitored(metrics: dict, monitor: str) -> float:
    """The value to raise: a validation metric, or with "-" before its name minus it."""
    name = monitor.removeprefix("-")
    if name not in metrics:
        raise ValueError(
            f"validation has no {name!r}, only {', '.join(sorted(metrics))}; "
            "set --config.train.monitor to one of them"
        )
    return -metrics[name] if monitor.startswith("-") else metrics[name]


def _check_finite(step, metrics):
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        raise DivergedError(
            f"step {step}: {', '.join(bad)} is not finite; lower "
            "--config.train.optimiser.learning_rate, or that of the stage where it has "
            "its own, in a new --config.run_dir"
        )
