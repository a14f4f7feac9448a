"""The loop: when it logs, looks, saves and stops, and that a stop leaves no trace."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsi_jax.training.checkpoint import Checkpoints
from wsi_jax.training.compile import compile_method
from wsi_jax.training.log import MetricsLog, read_metrics
from wsi_jax.training.loop import Best, DivergedError, Train, fit, monitored
from wsi_jax.training.mesh import make_mesh
from wsi_jax.training.supervised import supervised
from wsi_jax.types import Bag, Prediction

MESH = make_mesh(jax.devices()[:1])


def of_loss(loss):
    """A method of one parameter, at first 0, by gradient descent at a rate of 1/2."""
    start = lambda key, bag: {"w": jnp.zeros(())}
    nothing = lambda params, bag, key: Prediction(bag.x, bag.x, {})
    return compile_method(supervised(start, loss, nothing, optax.sgd(0.5)), MESH)


def downhill(params, bag, keys):
    """w grows by about 1/2 a step, more or less as the step's keys have it."""
    push = 1 + 0.1 * jax.vmap(jax.random.normal)(keys)
    return -params["w"] * push * bag.x[:, 0, 0], {}


METHOD = of_loss(downhill)
PLAN = Train(
    steps=40, log_every=3, validate_every=2, save_every=5, patience=3, monitor="-miss"
)


class Killed(Exception):
    pass


def batches(start, poison=None, kill=None):
    """Batches from `start` on; one may be NaN, one may never come."""
    for step in range(start + 1, 1000):
        if step == kill:
            raise Killed
        x = np.full((1, 1, 1), math.nan if step == poison else 1.0, np.float32)
        one = np.ones(1, np.float32)
        yield Bag(x, np.ones((1, 1), bool), np.zeros(1, np.int32), one)


class Run:
    """A folder and what goes on in it."""

    def __init__(self, folder, plan=PLAN):
        self.folder, self.plan, self.validations, self.kept = folder, plan, [], []

    def __call__(self, interrupted=lambda: False, **trouble):
        checkpoints = Checkpoints(self.folder / "state")
        state = METHOD.init(jax.random.key(0), next(batches(0)))
        best = Best()
        if restored := checkpoints.restore(state):
            state, memory = restored
            best = Best(**memory["best"])
        log = MetricsLog(self.folder / "metrics.jsonl", int(state.step))
        try:
            return fit(
                METHOD,
                state,
                batches(int(state.step), **trouble),
                self.plan,
                log=log,
                save=lambda step, state, best: checkpoints.save(
                    step, state, {"best": best._asdict()}
                ),
                validate=self.validate,
                keep=lambda step, params: self.kept.append(step),
                best=best,
                interrupted=interrupted,
            )
        finally:
            checkpoints.close()

    def validate(self, params):
        """Best near w = 5, which is passed at about step 10."""
        self.validations.append(float(params["w"]))
        return {"miss": abs(self.validations[-1] - 5), "other": 1.0}

    def log(self):
        return read_metrics(self.folder / "metrics.jsonl")

    def saved(self):
        return [int(path.name) for path in (self.folder / "state").iterdir()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Early stopping, uninterrupted."""
    run = Run(tmp_path_factory.mktemp("whole"))
    return run, *run()


def comparable(state):
    return state._replace(key=jax.random.key_data(state.key))


def test_it_stops_when_patience_is_out(whole):
    run, state, best = whole
    miss = np.abs(np.array(run.validations) - 5)
    assert best.step == 2 * (1 + miss.argmin())
    assert best.value == -miss.min()
    assert best.since == PLAN.patience
    assert int(state.step) == best.step + PLAN.validate_every * PLAN.patience < 40
    assert run.kept[-1] == best.step
    assert run.kept == sorted(set(run.kept))
    assert run.saved() == [int(state.step)]


@pytest.mark.parametrize("kill", [1, 4, 13, 16])
def test_killed_and_resumed_it_stops_at_the_same_step(whole, tmp_path, kill):
    """And leaves the same log, in which no step stands twice."""
    undisturbed, state, best = whole
    run = Run(tmp_path)
    with pytest.raises(Killed):
        run(kill=kill)
    resumed, same = run()
    assert same == best
    chex.assert_trees_all_equal(comparable(resumed), comparable(state))
    assert run.log() == undisturbed.log()


def test_what_had_stopped_takes_no_further_step(whole):
    run, state, best = whole
    validations, lines = len(run.validations), run.log()
    again, same = run(kill=int(state.step) + 1)
    assert same == best
    chex.assert_trees_all_equal(comparable(again), comparable(state))
    assert (len(run.validations), run.log()) == (validations, lines)


def test_interrupted_at_any_step_it_goes_on_from_there(whole, tmp_path):
    """At a step that is not due to be saved, too."""
    run, expected, best = Run(tmp_path), whole[1], whole[2]
    answers = iter([False] * 6 + [True])
    state, _ = run(interrupted=lambda: next(answers))
    assert int(state.step) == 7
    assert run.saved() == [7]
    state, again = run()
    chex.assert_trees_all_equal(comparable(state), comparable(expected))
    assert (again, run.log()) == (best, whole[0].log())
    assert run.validations == whole[0].validations


def test_without_patience_it_runs_to_the_end(tmp_path):
    """The last step is logged, looked at and saved, whatever it divides by."""
    plan = dataclasses.replace(PLAN, patience=0, steps=23, save_every=10)
    run = Run(tmp_path, plan)
    state, best = run()
    assert int(state.step) == 23
    assert best.step < 23
    assert [line["step"] for line in run.log() if "train.loss" in line] == [
        *range(3, 22, 3),
        23,
    ]
    assert [line["step"] for line in run.log() if "val.miss" in line] == [
        *range(2, 23, 2),
        23,
    ]
    assert run.saved() == [23]


def test_a_loss_that_is_no_number_stops_and_says_where(tmp_path):
    """Step 7 is bad, step 8 is when anyone looks, step 6 is safe on disk."""
    run = Run(tmp_path, dataclasses.replace(PLAN, save_every=2))
    with pytest.raises(DivergedError) as caught:
        run(poison=7)
    message = str(caught.value)
    assert message.startswith("step 8: loss")
    assert "--config.train.optimiser.learning_rate" in message
    assert run.saved() == [6]
    with pytest.raises(DivergedError, match="step 7"):
        run(poison=7, interrupted=lambda: True)
    assert run.saved() == [6]
    assert max(line["step"] for line in run.log()) == 6
    like = METHOD.init(jax.random.key(0), next(batches(0)))
    restored, _ = Checkpoints(tmp_path / "state").restore(like)
    assert float(restored.params["w"]) == run.validations[-1]
    assert math.isfinite(run.validations[-1])
    state, _ = run()  # and from there it goes on
    assert int(state.step) > 8


def test_the_last_good_state_survives_a_gradient_that_overflows(tmp_path):
    """Loss finite, gradient not: that step is not saved either."""

    def loss(params, bag, key):
        return jnp.sqrt(params["w"]) * bag.x[:, 0, 0], {}  # at 0: slope without end

    method = of_loss(loss)
    state = method.init(jax.random.key(0), next(batches(0)))
    saved = []
    with pytest.raises(DivergedError, match="step 1: grad_norm is not finite"):
        fit(
            method,
            state,
            batches(0),
            dataclasses.replace(PLAN, save_every=1),
            log=lambda *_: None,
            save=lambda *a: saved.append(a),
        )
    assert not saved


def test_a_minus_lowers_what_is_watched():
    """A value as good, or none, is not better."""
    metrics = {"auc": 0.75, "log_loss": 0.5}
    assert monitored(metrics, "auc") == 0.75
    assert monitored(metrics, "-log_loss") == -0.5
    first = Best().after(10, -0.5)
    assert first == Best(10, -0.5, 0)
    for value in (-0.6, -0.5, math.nan):
        assert first.after(20, value) == Best(10, -0.5, 1)
    assert first.after(20, -0.6).after(30, -0.4) == Best(30, -0.4, 0)
    with pytest.raises(ValueError, match="no 'acu', only auc, log_loss; set --config"):
        monitored(metrics, "-acu")


def test_classes_are_balanced_or_weighed_and_not_both():
    """In batches of any size."""
    for plan in (Train(batch=1), Train(balanced=True, class_weights=False)):
        plan.validate()
        assert plan.classes_equal
    assert not Train(class_weights=False).classes_equal
    with pytest.raises(ValueError, match=r"train\.balanced=.*train\.class_weights="):
        Train(balanced=True).validate()
