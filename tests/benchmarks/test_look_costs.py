"""Attention sampling beside patch-all: the cost model, and what is refused."""

import json

import pytest

from benchmarks.attention_sampling import overview_only
from benchmarks.look_costs import BATCH, Cost, cost, speed
from experiments.configs.phantom import attention_sampling
from wsi_jax.data.cohort import Cohort, Row

READ, FORWARD, OVERVIEW, LOOK = 1e-3, 2e-3, 5e-3, 3e-3
OURS = Cost(0.5, 0.2, 16, 32, 0.1, (READ, FORWARD, OVERVIEW, LOOK))
THEIRS = Cost(2.0, 0.6, 100, 100, 0.1, (READ, FORWARD, 0, 0))


def test_what_is_measured_is_the_sum_over_magnifications():
    row = speed("every", OURS, [THEIRS, THEIRS], 1)
    assert row["train_speedup"] == pytest.approx(2 * 2.0 / 0.5)
    assert row["infer_speedup"] == pytest.approx(2 * 0.6 / 0.2)
    assert row["infer_speedup_with_tissue"] == pytest.approx(2 * 0.7 / 0.3)


@pytest.mark.parametrize("passes", [1, 3])
def test_what_is_predicted(passes):
    """Crops are read and encoded; an overview is read, and looked at for a draw before
    it is looked at, and back, for a step."""
    row = speed("finest", OURS, [THEIRS], passes)
    step = 16 * (READ + passes * FORWARD) + OVERVIEW + 4 * LOOK
    verdict = 32 * (READ + FORWARD) + OVERVIEW + LOOK
    theirs = 100 * (READ + passes * FORWARD)
    assert row["predicted_train_speedup"] == pytest.approx(theirs / step)
    theirs = 100 * (READ + FORWARD)
    assert row["predicted_infer_speedup"] == pytest.approx(theirs / verdict)


def test_too_few_slides_to_time_are_refused():
    rows = [Row(f"s{i}", f"s{i}.tif", "normal", "", "") for i in range(2 * BATCH - 1)]
    with pytest.raises(ValueError, match=f"{2 * BATCH - 1} slides: {2 * BATCH} or"):
        cost(
            attention_sampling.every_tile(), Cohort(tuple(rows), ("normal", "tumor")), 1
        )


def test_an_auc_needs_a_certificate(tmp_path):
    with pytest.raises(ValueError, match="has no certificate: run"):
        overview_only(tmp_path)
    row = {"probe": "slide, fields pooled", "auc": 0.5, "lo": 0.4, "hi": 0.6}
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps({"rows": [row | {"mpp": 4.0}]}))
    with pytest.raises(ValueError, match="does not say what fields of 8 um/px tell"):
        overview_only(tmp_path)
    path.write_text(json.dumps({"rows": [row | {"mpp": 4.0}, row | {"mpp": 8.0}]}))
    assert overview_only(tmp_path) == (0.5, 0.4, 0.6)
