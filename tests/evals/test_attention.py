import numpy as np
import pytest

from wsi_jax.evals.attention import localisation_metrics


def test_attention_on_the_tumour_and_even_attention():
    """Two levels, as in the paper's argument: the difference is at most 1 / tumours."""
    tumour = np.arange(10) < 2
    on_it = localisation_metrics(np.where(tumour, 0.5, 0.0), tumour)
    assert on_it == pytest.approx((0.5, 5.0, 1.0, 0.2))
    even = localisation_metrics(np.full(10, 0.1), tumour)
    assert even == pytest.approx((0.0, 1.0, 0.2, 0.2))
    for one_kind, message in ((True, "every tile"), (False, "no tile")):
        with pytest.raises(ValueError, match=message):
            localisation_metrics(np.full(10, 0.1), np.full(10, one_kind))
