"""One stage of a training: fit, choose on validation, go on where it was killed."""

import contextlib
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from wsi_jax.data.prefetch import prefetch_to_device
from wsi_jax.files import AnyPath
from wsi_jax.run import interrupts
from wsi_jax.run.cost_account import StepAccount
from wsi_jax.run.stage_checkpoints import StageCheckpoints
from wsi_jax.training.compile import replicate
from wsi_jax.training.log import MetricsLog
from wsi_jax.training.loop import Train, fit
from wsi_jax.training.processes import agree, is_first
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
    folder: AnyPath,
    *,
    account: StepAccount,
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
    # Closed even where training fails: the last checkpoint is whole then.
    with contextlib.closing(
        StageCheckpoints(
            folder, batches.fingerprints, batches.classes, earlier, account
        )
    ) as stage:
        params = stage.finished(plan)
        if params is None:
            state = _fit(
                plan, method, batches, validate, folder, stage, earlier,
                account=account, advance=advance,
            )  # fmt: skip
            params = stage.kept_params(state.params, plan.monitor)
        else:  # nothing is read, and nothing compiled
            advance(plan.steps, before=True)
    return replicate(params, batches.mesh)


def _fit(
    plan, method, batches, validate, folder, stage, earlier, *, account, advance
) -> TrainState:
    """Fits what is left of a stage."""
    first = batches.put(next(batches.stream(0)))
    state = begin(method.init(jax.random.key(plan.seed), first), earlier)
    state, best = stage.restore(state)
    step, latest = int(state.step), {}
    log = lambda *_: None
    if is_first():
        log = MetricsLog(folder / "metrics.jsonl", step)
    advance(step, before=True)
    feed = Feed(prefetch_to_device(batches.stream(step), batches.put, 2))

    def logged(step, metrics):
        log(step, metrics)
        account.record(step)
        latest.update(metrics)

    def save(step, state, best):
        if is_first():
            log.flush()
        stage.save(step, state, best)

    began = time.perf_counter()
    with interrupts.deferred(agree) as interrupted:
        state, _ = fit(
            method, state, feed, plan, log=logged, save=save,
            validate=validate, keep=stage.keep, best=best,
            interrupted=interrupted,
            advance=lambda: advance(1, format_latest(latest, plan.monitor)),
        )  # fmt: skip
    account.add_device_s(time.perf_counter() - began - feed.waited_s)
    return state


def format_latest(metrics: Mapping[str, float], monitor: str) -> str:
    """The loss, and how validation went, for a progress bar.

    Args:
        metrics: by their names in the log.
        monitor: the metric that validation must better; shown where there is no AUC.
    """
    names = {
        "train.loss": "loss",
        f"val.{monitor.removeprefix('-')}": f"val {monitor.removeprefix('-')}",
    }
    if "val.auc" in metrics:
        names = {"train.loss": "loss", "val.auc": "val AUC"}
    return ", ".join(
        f"{word} {metrics[name]:.3f}" for name, word in names.items() if name in metrics
    )


def begin(state: TrainState, earlier: dict[str, Any] | None) -> TrainState:
    """A fresh state, but what an earlier stage has trained is as that left it."""
    if not earlier:
        return state
    # Copies: the first step is given the state to write over.
    shared = {name: earlier[name] for name in state.params if name in earlier}
    return state._replace(params=state.params | jax.tree.map(jnp.copy, shared))


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
