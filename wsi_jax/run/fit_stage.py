"""One stage of a training: fit, choose on validation, go on where it was killed."""

import contextlib
import pathlib
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from wsi_jax.data.prefetch import prefetch_to_device
from wsi_jax.evals.cost import Meter
from wsi_jax.run import stopping
from wsi_jax.run.config import RunError
from wsi_jax.run.predictor import WEIGHTS
from wsi_jax.training.checkpoint import Checkpoints, digest
from wsi_jax.training.compile import replicate
from wsi_jax.training.flops import executed
from wsi_jax.training.log import MetricsLog
from wsi_jax.training.loop import Best, Train, fit
from wsi_jax.types import Bag, Compiled, TrainState

NOTHING = types.MappingProxyType({})


def fit_stage(
    plan: Train,
    method: Compiled,
    stream: Callable[[int], Iterator[Bag]],
    validate: Callable[[Any], dict[str, float]],
    folder: pathlib.Path,
    mesh: Mesh,
    put: Callable[[Any], Any],
    meter: Meter,
    advance: Callable,
    earlier: dict[str, Any] | None = None,
    data: Mapping[str, str] = NOTHING,
    classes: Sequence[str] = (),
    unit: str = "training",
    work: Callable[[], Mapping[str, int | float]] = executed,
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
        meter: is charged with the work, and with the device's seconds.
        advance: of a progress bar.
        earlier: parameters of the stage before; None where this is the first.
        data: fingerprint of each slide of training and validation, by its name.
        classes: in the order of the labels; kept beside the parameters.
        unit: of the meter; by this name the work goes on after a kill.
        work: what this process has done so far, of `evals.cost.WORK`.

    Raises:
        Stopped: a signal has come; the step it was at is saved.
        RunError: validation was never a number, or the stage had begun with other
            slides, or with what an earlier one had learnt otherwise.
    """
    after = digest(earlier) if earlier else ""
    checkpoints = Checkpoints(folder / "state")
    kept = Checkpoints(folder / WEIGHTS)
    first = put(next(stream(0)))
    state = begin(method.init(jax.random.key(plan.seed), first), earlier)
    best, memory = Best(), {}
    if found := checkpoints.restore(state):
        state, memory = found
        best = Best(**memory["best"])
        check_after(memory.get("after", ""), after, folder)
        check_data(memory.get("data", data), data, folder)
    account = StepAccount(meter, unit, work, int(state.step), memory.get("work", {}))
    log = MetricsLog(folder / "metrics.jsonl", int(state.step))
    advance(int(state.step), before=True)
    batches = Feed(prefetch_to_device(stream(int(state.step)), put, 2))

    def logged(step, metrics):
        log(step, metrics)
        account.enter(step)

    def save(step, state, best):
        account.enter(step)
        kept.wait()  # no checkpoint may know of a best step that is not on disk
        memory = {"best": best._asdict(), "after": after, "data": dict(data)}
        checkpoints.save(step, state, memory | {"work": meter.unit(unit)})

    def keep(step, params):
        kept.save(step, params, {"step": step, "classes": list(classes)})

    began = time.perf_counter()
    # Closed even where training fails: the last checkpoint is whole then.
    with contextlib.closing(checkpoints), contextlib.closing(kept):
        with stopping.deferred() as interrupted:
            state, best = fit(
                method,
                state,
                batches,
                plan,
                log=logged,
                save=save,
                validate=validate,
                keep=keep,
                best=best,
                advance=lambda: advance(1),
                interrupted=interrupted,
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


def begin(state: TrainState, earlier: dict[str, Any] | None) -> TrainState:
    """A fresh state, but what an earlier stage has trained is as that left it."""
    if not earlier:
        return state
    # Copies: the first step is given the state to write over.
    known = {name: earlier[name] for name in state.params if name in earlier}
    return state._replace(params=state.params | jax.tree.map(jnp.copy, known))


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


def check_data(
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
        unit: of the meter.
        work: what this process has done so far.
        step: of the checkpoint; 0 where there is none.
        done: the work that the checkpoint remembers.
    """

    def __init__(
        self,
        meter: Meter,
        unit: str,
        work: Callable[[], Mapping[str, int | float]],
        step: int,
        done: Mapping[str, int | float],
    ):
        self._meter, self._unit, self._work = meter, unit, work
        self._step, self._before = step, work()
        meter.begin(unit, **done)

    def enter(self, step: int) -> None:
        """Enters what was done since it was last called."""
        now, before = self._work(), self._before
        spent = {name: now[name] - before.get(name, 0) for name in now}
        self._meter.enter(self._unit, steps=step - self._step, **spent)
        self._step, self._before = step, now


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
