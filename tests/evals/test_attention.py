import numpy as np
import pytest

from wsi_jax.evals.attention import localisation_metrics


def test_all_of_it_on_the_tumour():
    """Two levels, as in the paper's argument: the difference is at most 1 / tumours."""
    tumour = np.arange(10) < 2
    result = localisation_metrics(np.where(tumour, 0.5, 0.0), tumour)
    assert result == pytest.approx((0.5, 5.0, 1.0, 0.2))


def test_even_attention_finds_nothing():
    tumour = np.arange(10) < 2
    result = localisation_metrics(np.full(10, 0.1), tumour)
    assert result == pytest.approx((0.0, 1.0, 0.2, 0.2))


@pytest.mark.parametrize(("tumour", "message"), [(True, "every"), (False, "no tile")])
def test_a_slide_of_one_kind_is_refused(tumour, message):
    with pytest.raises(ValueError, match=message):
        localisation_metrics(np.full(4, 0.25), np.full(4, tumour))
