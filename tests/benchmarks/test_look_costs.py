"""Attention sampling beside patch-all: the cost model, and what is refused."""

import json

import pytest

from benchmarks.attention_sampling import on_fields, overview_only, patch_all, sampled
from benchmarks.look_costs import BATCH, Cost, cost, speed
from experiments.configs.phantom import attention_sampling
from wsi_jax import config_fields
from wsi_jax.data.cohort import Cohort, Row

PARTS = READ, FORWARD, OVERVIEW, LOOK = 1e-3, 2e-3, 5e-3, 3e-3
OURS = Cost(0.5, 0.2, 16, 32, 0.1, *PARTS)
THEIRS = Cost(2.0, 0.6, 100, 100, 0.1, READ, FORWARD)


@pytest.mark.parametrize("passes", [1, 3])
def test_ratios_are_of_sums_over_magnifications(passes):
    """Crops are read and encoded; an overview is read, and looked at for a draw before
    it is looked at, and back, for a step."""
    row = speed("every", OURS, [THEIRS, THEIRS], passes)
    step = 16 * (READ + passes * FORWARD) + OVERVIEW + 4 * LOOK
    prediction = 32 * (READ + FORWARD) + OVERVIEW + LOOK
    expected = {
        "train_speedup": 2 * 2.0 / 0.5,
        "infer_speedup": 2 * 0.6 / 0.2,
        "infer_speedup_with_tissue": 2 * 0.7 / 0.3,
        "predicted_train_speedup": 200 * (READ + passes * FORWARD) / step,
        "predicted_infer_speedup": 200 * (READ + FORWARD) / prediction,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("weights", ["", "encoder.safetensors"])
def test_configs_are_whole(weights):
    """A trunk is held if it has weights; one of several magnifications is learnt."""
    for config in (sampled(weights, (1.0,)), sampled(weights, (1.0, 2.0))):
        config_fields.check_types(config)
        assert config.method.trunk_rate == (not weights)
        several = len(config.method.mpps) > 1
        assert (config.method.loss.per_magnification > 0) == several
    config = on_fields(patch_all(weights, 2.0))
    config_fields.check_types(config)
    assert config.grid.size_px == 2 * 224 / 8


def test_too_few_slides_to_time_are_refused():
    rows = [Row(f"s{i}", f"s{i}.tif", "normal", "", "") for i in range(2 * BATCH - 1)]
    few = Cohort(tuple(rows), ("normal", "tumor"))
    with pytest.raises(ValueError, match=f"{2 * BATCH - 1} slides: {2 * BATCH} or"):
        cost(attention_sampling.every_tile(), few, 1)


def test_an_auc_needs_a_certificate(tmp_path):
    with pytest.raises(ValueError, match="has no certificate: run"):
        overview_only(tmp_path)
    (tmp_path / "cohort.json").write_text(json.dumps({"config": {}}))
    row = {"probe": "slide, fields pooled", "auc": 0.5, "lo": 0.4, "hi": 0.6}
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps({"rows": [row | {"mpp": 4.0}]}))
    with pytest.raises(ValueError, match="does not say what fields of 8 um/px tell"):
        overview_only(tmp_path)
    path.write_text(json.dumps({"rows": [row | {"mpp": 4.0}, row | {"mpp": 8.0}]}))
    assert overview_only(tmp_path) == (0.5, 0.4, 0.6)
