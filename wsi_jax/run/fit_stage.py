"""One stage of a training: fit, choose on validation, go on where it was killed."""

import contextlib
import pathlib
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from wsi_jax.data.prefetch import prefetch_to_device
from wsi_jax.evals.cost_meter import Meter
from wsi_jax.run import interrupts
from wsi_jax.run.model_card import WEIGHTS
from wsi_jax.run.run_folder import RunError
from wsi_jax.training.checkpoint import Checkpoints, digest
from wsi_jax.training.compile import replicate
from wsi_jax.training.flops import executed
from wsi_jax.training.log import MetricsLog
from wsi_jax.training.loop import Best, Train, fit
from wsi_jax.types import Bag, Compiled, TrainState


class StageBatches(NamedTuple):
    """The slides that a stage learns from.

    Attributes:
        stream: step -> its batch and all that follow.
        put: moves a batch to where the method wants it.
        mesh: devices on which the trained parameters lie in the end.
        fingerprints: hash of each slide of training and validation, by its name.
        classes: names of the classes; kept beside the parameters.
    """

    stream: Callable[[int], Iterator[Bag]]
    put: Callable[[Any], Any]
    mesh: Mesh
    fingerprints: Mapping[str, str] = types.MappingProxyType({})
    classes: Sequence[str] = ()


def fit_stage(
    plan: Train,
    method: Compiled,
    batches: StageBatches,
    validate: Callable[[Any], dict[str, float]],
    folder: pathlib.Path,
    *,
    account: "StepAccount",
    advance: Callable,
    earlier: dict[str, Any] | None = None,
) -> Any:
    """Fits one stage, resuming; returns the parameters that did best on validation.

    Args:
        plan: how the stage is trained.
        method: compiled.
        batches: what it learns from.
        validate: params -> metrics.
        folder: where its checkpoints are.
        account: is charged with the work; goes on after a kill.
        advance: moves a progress bar.
        earlier: parameters of the stage before; None for the first.

    Raises:
        Stopped: a signal has come; the step it was at is saved.
        RunError: validation was never a number, or the stage had begun with other
            slides, or with other parameters of an earlier one.
    """
    first = batches.put(next(batches.stream(0)))
    state = begin(method.init(jax.random.key(plan.seed), first), earlier)
    stage = StageCheckpoints(folder, batches, earlier, account)
    state, best = stage.restore(state)
    log = MetricsLog(folder / "metrics.jsonl", int(state.step))
    advance(int(state.step), before=True)
    stream = batches.stream(int(state.step))
    feed = Feed(prefetch_to_device(stream, batches.put, 2))

    def logged(step, metrics):
        log(step, metrics)
        account.record(step)

    began = time.perf_counter()
    # Closed even where training fails: the last checkpoint is whole then.
    with contextlib.closing(stage):
        with interrupts.deferred() as interrupted:
            state, best = fit(
                method, state, feed, plan, log=logged, save=stage.save,
                validate=validate, keep=stage.keep, best=best, interrupted=interrupted,
                advance=lambda: advance(1),
            )  # fmt: skip
        account.add_device_s(time.perf_counter() - began - feed.waited_s)
        params = stage.kept_params(state.params, plan.monitor)
    return replicate(params, batches.mesh)


class StageCheckpoints:
    """The checkpoints of a stage, and the parameters that did best on validation.

    Args:
        folder: the stage's folder.
        batches: what it learns from.
        earlier: parameters of the stage before; None for the first.
        account: the work so far goes into each checkpoint.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        batches: StageBatches,
        earlier: dict[str, Any] | None,
        account: "StepAccount",
    ):
        self._folder, self._account = folder, account
        self._data, self._classes = dict(batches.fingerprints), list(batches.classes)
        self._after = digest(earlier) if earlier else ""
        self._states = Checkpoints(folder / "state")
        self._kept = Checkpoints(folder / WEIGHTS)

    def restore(self, state: TrainState) -> tuple[TrainState, Best]:
        """The last checkpoint, or the fresh state; begins the account with it.

        Raises:
            RunError: the stage had begun with other slides or parameters.
        """
        best, memory = Best(), {}
        if restored := self._states.restore(state):
            state, memory = restored
            best = Best(**memory["best"])
            check_after(memory.get("after", ""), self._after, self._folder)
            check_same_data(memory.get("data", self._data), self._data, self._folder)
        self._account.begin(int(state.step), memory.get("work", {}))
        return state, best

    def save(self, step: int, state: TrainState, best: Best) -> None:
        """Writes a checkpoint."""
        self._account.record(step)
        self._kept.wait()  # no checkpoint may know of a best step that is not on disk
        memory = {"best": best._asdict(), "after": self._after, "data": self._data}
        self._states.save(step, state, memory | {"work": self._account.total()})

    def keep(self, step: int, params: Any) -> None:
        """Keeps parameters that are the best so far."""
        self._kept.save(step, params, {"step": step, "classes": self._classes})

    def kept_params(self, like: Any, monitor: str) -> Any:
        """The parameters that were kept last, in a tree like another.

        Raises:
            RunError: there are none, as the metric `monitor` was never a number.
        """
        self._kept.wait()
        restored = self._kept.restore(like)
        if restored is None:
            raise RunError(
                f"{self._folder / WEIGHTS} holds no weights: validation never had a "
                f"{monitor.removeprefix('-')} that is a number; choose another "
                "--config.train.monitor"
            )
        return restored[0]

    def close(self) -> None:
        """Waits for what is being written."""
        with contextlib.closing(self._states), contextlib.closing(self._kept):
            pass


def begin(state: TrainState, earlier: dict[str, Any] | None) -> TrainState:
    """A fresh state, but what an earlier stage has trained is as that left it."""
    if not earlier:
        return state
    # Copies: the first step is given the state to write over.
    shared = {name: earlier[name] for name in state.params if name in earlier}
    return state._replace(params=state.params | jax.tree.map(jnp.copy, shared))


def check_after(before: str, now: str, folder: pathlib.Path) -> None:
    """A stage goes on from the parameters that it began with.

    Raises:
        RunError: they are others now.
    """
    if before != now:
        raise RunError(
            f"{folder} began with parameters {before or 'of its own'}, and the stage "
            f"before it now has {now}: delete {folder} to train it anew, or put that "
            "stage's folder back"
        )


def check_same_data(
    before: Mapping[str, str], now: Mapping[str, str], folder: pathlib.Path
) -> None:
    """A stage goes on with the slides that it began with.

    Raises:
        RunError: naming the first that is another now.
    """
    for name in [*before, *now]:
        was, here = before.get(name), now.get(name)
        if was != here:
            change = (
                "been replaced" if was and here else "gone" if was else "been added"
            )
            raise RunError(
                f"{folder} has begun to learn, and slide {name!r} has {change} since "
                f"(its file, or its features): put it back as it was, or delete "
                f"{folder} to train it anew, or name a new --config.run_dir"
            )


class StepAccount:
    """The work of a stage, step by step; a later process goes on from a checkpoint's.

    Args:
        meter: is charged.
        unit: name in the meter's account; by it the work goes on after a kill.
        work: what this process has done so far, as in `evals.cost_meter.WORK`.
    """

    def __init__(
        self,
        meter: Meter,
        unit: str,
        work: Callable[[], Mapping[str, int | float]] = executed,
    ):
        self._meter, self._unit, self._work = meter, unit, work
        self._step, self._before = 0, {}

    def begin(self, step: int, done: Mapping[str, int | float]) -> None:
        """Begins at a checkpoint's step, with the work that it remembers."""
        self._step, self._before = step, self._work()
        self._meter.begin(self._unit, **done)

    def record(self, step: int) -> None:
        """Enters what was done since it was last called."""
        now, before = self._work(), self._before
        spent = {name: now[name] - before.get(name, 0) for name in now}
        self._meter.record(self._unit, steps=step - self._step, **spent)
        self._step, self._before = step, now

    def total(self) -> Mapping[str, int | float]:
        """The work so far, of earlier processes too."""
        return self._meter.unit(self._unit)

    def add_device_s(self, seconds: float) -> None:
        """Adds seconds in which the device was at work."""
        self._meter.add(device_s=seconds)


class Feed:
    """Batches for the loop; counts the seconds waited for them."""

    def __init__(self, batches: Iterator):
        self.batches, self.waited_s = batches, 0.0

    def __next__(self):
        began = time.perf_counter()
        batch = next(self.batches)
        self.waited_s += time.perf_counter() - began
        return batch

    def __iter__(self):
        return self
