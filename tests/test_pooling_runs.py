"""What stands in the table of attention pooling beside the runs themselves."""

import pytest

from benchmarks.attention_pooling_runs import MEASURES, called, means, tuned


def run(seed, weights, auc, loss, half=0.1):
    row = {"preset": "needle", "seed": seed, "weights": weights, "n": 160}
    row |= {"joint": False, "val_log_loss": loss}
    for name in MEASURES:
        row |= {name: auc, f"{name}_lo": auc - half, f"{name}_hi": auc + half}
    return row


def test_the_power_is_chosen_on_validation_slides():
    """Whatever the test slides say; where one alone was tried there is no choice."""
    rows = [
        run(1, "squared average", 0.9, 0.5),
        run(1, "power 4", 0.6, 0.4),
        run(1, "softmax", 0.7, 0.1),
        run(2, "squared average", 0.9, 0.5),
    ]
    (chosen,) = tuned(rows)
    assert chosen == rows[1] | {"weights": "power, tuned"}


def test_the_interval_of_a_mean_is_that_of_independent_cohorts():
    rows = [run(seed, "softmax", auc, 0.1) for seed, auc in ((1, 0.6), (2, 0.8))]
    (mean,) = means(rows)
    assert (mean["seeds"], mean["n"]) == (2, 320)
    assert mean["auc"] == pytest.approx(0.7)
    assert mean["auc_hi"] - mean["auc"] == pytest.approx(0.1 / 2**0.5)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "squared average"),
        ({"power": 4.0}, "power 4"),
        ({"normaliser": "bounded_softmax"}, "bounded softmax"),
        ({"pooling": "max", "joint": True}, "max"),
        ({"joint": True}, "squared average, joint"),
    ],
)
def test_a_way_to_weigh_has_a_name(fields, name):
    config = {"normaliser": "squared_average", "power": 2.0, "pooling": "attention"}
    config |= {"joint": False} | fields
    assert called({f"method.{key}": value for key, value in config.items()}) == name
