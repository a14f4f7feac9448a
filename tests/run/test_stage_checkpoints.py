"""A stage of training that has come to its end is not begun again."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from wsi_jax.evals.cost_meter import Meter
from wsi_jax.run.cost_account import StepAccount
from wsi_jax.run.run_folder import RunError
from wsi_jax.run.stage_checkpoints import StageCheckpoints
from wsi_jax.training.loop import Best, Train
from wsi_jax.types import TrainState

PLAN = Train(steps=20, patience=3)
SLIDES = {"one": "a1", "two": "b2"}


@pytest.fixture
def open_stage(tmp_path):
    """Opens the checkpoints of a stage, as a new process does."""

    def opened(meter=None, slides=SLIDES):
        account = StepAccount(meter or Meter(), "training")
        return StageCheckpoints(tmp_path, slides, ["no", "yes"], None, account)

    return opened


def train(stage, steps, best):
    """Leaves the folder as a training of so many steps does."""
    params = {"trunk": {"kernel": jnp.full((2, 3), 0.1)}, "bias": jnp.arange(2.0)}
    state = TrainState(jnp.int32(steps), params, jnp.ones(3), jax.random.key(0))
    start = state._replace(step=jnp.int32(0))
    assert stage.restore(start) == (start, Best())
    stage.keep(best.step, params)
    stage.save(steps, state, best)
    stage.close()
    return params


@pytest.mark.parametrize(
    ("steps", "since"), [(20, 0), (12, 3)], ids=["all steps", "no patience left"]
)
def test_its_parameters_are_at_hand_without_a_method(open_stage, steps, since):
    params = train(open_stage(), steps, Best(step=8, value=0.9, since=since))
    meter = Meter()
    again = open_stage(meter).finished(PLAN)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), again, params))
    assert meter.unit("training")["steps"] == steps


def test_a_stage_that_has_steps_left_is_not_finished(open_stage):
    assert open_stage().finished(PLAN) is None
    train(open_stage(), 12, Best(step=8, value=0.9, since=2))
    assert open_stage().finished(PLAN) is None
    endless = dataclasses.replace(PLAN, patience=0)
    assert open_stage().finished(endless) is None


def test_it_was_of_these_slides(open_stage):
    train(open_stage(), 20, Best(step=8, value=0.9))
    with pytest.raises(RunError, match=r"slide 'two' has been replaced"):
        open_stage(slides=SLIDES | {"two": "c3"}).finished(PLAN)
