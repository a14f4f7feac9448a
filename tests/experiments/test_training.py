"""Weights of classes: equal parts in the loss, and probabilities of the cohort."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wsi_jax.data.order import slides_of_batch
from wsi_jax.evals.metrics import slide_metrics
from wsi_jax.ops.class_prior import probabilities
from wsi_jax.run.cohort_predictions import (
    class_weights,
    prior_correction,
    validation_metrics,
)
from wsi_jax.training.loop import Train
from wsi_jax.training.supervised import supervised
from wsi_jax.types import Bag

PLANS = {
    "weighted": Train(class_weights=True),
    "balanced": Train(class_weights=False, balanced=True),
}


@pytest.mark.parametrize("batch", [1, 4, 10])
def test_classes_have_equal_parts_in_the_loss_of_an_epoch(batch):
    """However few slides of a class there are, and how many in a batch."""
    labels = (np.arange(40) % 10 == 3).astype(np.int32)
    weights = class_weights(labels, 2)
    loss = lambda params, bag, key: (params[bag.target], {})
    init = lambda key, bag: jnp.zeros(2)
    method = supervised(init, loss, loss, optax.sgd(1.0))
    pick = lambda at: Bag(None, None, labels[at], weights[at])
    state, step = method.init(jax.random.key(0), pick([0])), jax.jit(method.step)
    for i in range(40 // batch):
        state, _ = step(state, pick(slides_of_batch(0, i, labels, batch, False)))
    np.testing.assert_allclose(-state.params * batch / 40, [0.5, 0.5], rtol=1e-5)


def solved(x, labels, weight):
    """Coefficients of the logistic regression, by Newton's method."""
    x, b = np.stack([np.ones_like(x), x], 1), np.zeros(2)
    for _ in range(12):
        p = 1 / (1 + np.exp(-x @ b))
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x
        b += np.linalg.solve(hessian, x.T @ (weight * (labels - p)))
    return b


@pytest.mark.parametrize("name", PLANS)
def test_probabilities_are_those_of_a_plain_training(name):
    """Of a learner that could be calibrated, on a cohort with few slides of a class."""
    rng = np.random.default_rng(0)
    labels = (rng.random((2, 5000)) < 0.1).astype(np.int32)
    x, test = rng.normal(size=labels.shape) + 1.5 * labels
    plan, weight = PLANS[name], class_weights(labels[0], 2)
    if plan.balanced:  # an epoch of the larger class
        drawn = slides_of_batch(0, 0, labels[0], 2 * int((1 - labels[0]).sum()), True)
        weight = np.bincount(drawn, minlength=len(x))

    def metrics_with(weight, log_prior):
        b = solved(x, labels[0], weight)
        logits = np.stack([np.zeros_like(test), b[0] + b[1] * test], 1)
        return slide_metrics(labels[1], probabilities(logits, log_prior), 0.5)

    plain = metrics_with(
        np.ones(len(x)), prior_correction(Train(class_weights=False), labels[0], 2)
    )
    mended, shifted = (
        metrics_with(weight, prior_correction(plan, labels[0], 2)),
        metrics_with(weight, ()),
    )
    assert plain["calibration_error"] < 0.015
    for metric, tolerance in (("log_loss", 0.003), ("calibration_error", 0.01)):
        assert mended[metric] == pytest.approx(plain[metric], abs=tolerance)
        assert shifted[metric] > plain[metric] + 0.1
    assert mended["auc"] == pytest.approx(shifted["auc"], abs=1e-5)  # of float32


@pytest.mark.parametrize("name", PLANS)
def test_validation_decides_as_without_the_correction(name):
    rng = np.random.default_rng(0)
    labels = (rng.random(200) < 0.2).astype(np.int32)
    logits = rng.normal(size=(200, 2)) + labels[:, None] * [0, 2]
    log_prior = prior_correction(PLANS[name], labels, 2)
    mended = validation_metrics(labels, probabilities(logits, log_prior), log_prior)
    plain = validation_metrics(labels, probabilities(logits))
    for metric in ("balanced_accuracy", "f1", "sensitivity", "specificity", "auc"):
        assert mended[metric] == plain[metric]
    assert mended["log_loss"] < plain["log_loss"]
