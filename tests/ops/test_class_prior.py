"""Logits of equal classes become those of the cohort."""

import jax
import numpy as np

from wsi_jax.ops.class_prior import log_prior, probabilities


def test_likelihoods_become_the_posterior():
    """Three classes, by Bayes' rule."""
    rng = np.random.default_rng(0)
    labels, logits = np.repeat([0, 1, 2], [70, 20, 10]), rng.normal(size=(5, 3))
    joint = np.exp(logits) * [0.7, 0.2, 0.1]
    posterior = probabilities(logits, log_prior(labels, 3))
    np.testing.assert_allclose(
        posterior, joint / joint.sum(1, keepdims=True), rtol=1e-5
    )


def test_nothing_shifted_is_nothing_corrected():
    """To the last bit: without a correction, and where classes are equal."""
    logits = np.float32(np.random.default_rng(0).normal(size=(50, 3)))
    right = np.float64(jax.nn.softmax(logits))
    assert log_prior(np.arange(21) % 3, 3) == (0, 0, 0)
    assert log_prior(np.array([0, 0, 1]), 3) == (np.log(2), 0, 0)  # none of the third
    for shift in ((), (0.0, 0.0, 0.0)):
        np.testing.assert_array_equal(probabilities(logits, shift), right)
