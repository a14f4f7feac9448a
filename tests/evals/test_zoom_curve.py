"""Slides of different lengths are read off together, and end at their predictions."""

import numpy as np
import pytest

from wsi_jax.evals.zoom_curve import zoom_curve


def logits(*p):
    """Logits of two classes, whose second has these probabilities."""
    p = np.array(p)
    return np.stack([np.zeros(len(p)), np.log(p) - np.log1p(-p)], -1)


def test_slides_are_read_off_at_the_same_fractions_of_their_way():
    short, long = logits(0.5, 0.7), logits(0.1, 0.2, 0.4, 0.3)
    shares, p = zoom_curve([short, long], [1, 3], [4, 10], points=7)
    np.testing.assert_allclose(shares, np.linspace(0, (0.25 + 0.3) / 2, 7))
    np.testing.assert_allclose(p[0, :, 1], np.linspace(0.5, 0.7, 7))
    np.testing.assert_allclose(p[1, :, 1], [0.1, 0.15, 0.2, 0.3, 0.4, 0.35, 0.3])
    np.testing.assert_allclose(p.sum(-1), 1)


def test_what_lies_behind_the_last_step_has_no_effect_but_less_is_refused():
    one = logits(0.5, 0.6, 0.9, 0.01)
    shares, p = zoom_curve([one], [2], [10])
    spoilt = one.copy()
    spoilt[3:] = np.nan
    np.testing.assert_array_equal(zoom_curve([spoilt], [2], [10])[1], p)
    assert shares[-1] == 0.2
    assert p[0, -1, 1] == pytest.approx(0.9)
    with pytest.raises(ValueError, match="slide 1: 3 steps, but 2 logits"):
        zoom_curve([one, one[:2]], [1, 3], [4, 4])
