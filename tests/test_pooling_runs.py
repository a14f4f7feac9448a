"""What stands in the table of attention pooling beside the runs themselves."""

import numpy as np
import pytest

from benchmarks.attention_pooling_runs import (
    MEASURES,
    called,
    differences,
    known,
    means,
    tuned,
)


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


def test_joint_training_is_compared_on_the_same_slides(tmp_path):
    """Where a cohort has both, and whatever the order of their slides."""
    p = np.array([0.1, 0.4, 0.35, 0.8, 0.7, 0.2])
    runs = {}
    for name, weights in (("both", "softmax"), ("both", "softmax, joint"),
                          ("alone", "softmax, joint")):  # fmt: skip
        folder = tmp_path / f"{name} {weights}"
        folder.mkdir()
        said = p if weights == "softmax" else 1 - p
        lines = [f"s{i},{'tumor' if i % 2 else 'normal'},{x}"
                 for i, x in enumerate(said)]  # fmt: skip
        lines = lines if weights == "softmax" else lines[::-1]
        text = "\n".join(["slide_id,label,p_tumor", *lines])
        (folder / "predictions.csv").write_text(text)
        runs[folder] = run({"both": 1, "alone": 2}[name], weights, 0.5, 0.5)
    (gap,) = differences(runs)
    assert (gap["cohorts"], gap["preset"]) == (1, "needle")
    wins = np.mean([[a > b for b in p[::2]] for a in p[1::2]])
    assert gap["auc_diff"] == pytest.approx(1 - 2 * wins)


def test_an_earlier_record_gives_only_runs_that_are_not_given_again():
    """Its means are taken anew; its cohorts are certified as they are now."""
    old = [run(s, w, 0.6, 0.5) | {"run_commit": "a"}
           for s in (1, 2) for w in ("softmax", "power, tuned")]  # fmt: skip
    new = [run(2, "softmax", 0.9, 0.5), run(1, "max", 0.9, 0.5) | {"none": 11}]
    (kept,) = known({"rows": [*old, *means(old)]}, new)
    assert kept == old[0] | {"none": 11}


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
