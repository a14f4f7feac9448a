"""Checkpoints of a stage of training: where it goes on, and what it must find there."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from wsi_jax.files import AnyPath
from wsi_jax.run.cost_account import StepAccount
from wsi_jax.run.model_card import WEIGHTS
from wsi_jax.run.run_folder import RunError
from wsi_jax.training.checkpoint import Checkpoints, digest
from wsi_jax.training.loop import Best, Train
from wsi_jax.types import TrainState


class StageCheckpoints:
    """The checkpoints of a stage, and the parameters that did best on validation.

    Args:
        folder: the stage's folder.
        fingerprints: hash of each slide that it learns from, by its name.
        classes: names of the classes; kept beside the parameters.
        earlier: parameters of the stage before; None for the first.
        account: the work so far goes into each checkpoint.
    """

    def __init__(
        self,
        folder: AnyPath,
        fingerprints: Mapping[str, str],
        classes: Sequence[str],
        earlier: dict[str, Any] | None,
        account: StepAccount,
    ):
        self._folder, self._account = folder, account
        self._data, self._classes = dict(fingerprints), list(classes)
        self._after = digest(earlier) if earlier else ""
        self._states = Checkpoints(folder / "state", together=True)
        self._kept = Checkpoints(folder / WEIGHTS, together=True)

    def finished(self, plan: Train) -> Any | None:
        """The parameters of a stage that had come to its end; None for another.

        Raises:
            RunError: the stage had begun with other slides or parameters.
        """
        step, memory = self._states.memory() or (0, None)
        if memory is None:
            return None
        patient = not plan.patience or memory["best"]["since"] < plan.patience
        if step < plan.steps and patient:
            return None
        self._check(memory)
        self._account.begin(step, memory.get("work", {}))
        return self.kept_params(None, plan.monitor)

    def restore(self, state: TrainState) -> tuple[TrainState, Best]:
        """The last checkpoint, or the fresh state; begins the account with it.

        Raises:
            RunError: the stage had begun with other slides or parameters.
        """
        best, memory = Best(), {}
        if restored := self._states.restore(state):
            state, memory = restored
            best = Best(**memory["best"])
            self._check(memory)
        self._account.begin(int(state.step), memory.get("work", {}))
        return state, best

    def _check(self, memory):
        check_after(memory.get("after", ""), self._after, self._folder)
        check_same_data(memory.get("data", self._data), self._data, self._folder)

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
        """The parameters that were kept last, in a tree like another, or as saved.

        Raises:
            RunError: there are none, as the metric `monitor` was never a number.
        """
        self._kept.wait()
        restored = self._kept.restore(like)
        if restored is None:
            raise RunError(
                f"{self._folder / WEIGHTS} holds no weights: they were deleted, then "
                f"delete {self._folder} to train it anew; or validation never had a "
                f"{monitor.removeprefix('-')} that is a number, then choose another "
                "--config.train.monitor"
            )
        return restored[0]

    def close(self) -> None:
        """Waits for what is being written."""
        with contextlib.closing(self._states), contextlib.closing(self._kept):
            pass


def check_after(before: str, now: str, folder: AnyPath) -> None:
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
    before: Mapping[str, str], now: Mapping[str, str], folder: AnyPath
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
