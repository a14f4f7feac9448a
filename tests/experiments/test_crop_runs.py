"""Methods that read crops: trained, reported, opened again, drawn."""

import dataclasses

import numpy as np
import pytest
from run_files import by_slide, read_json, table
from words import with_field

import wsi_jax
from experiments.pretraining.export_encoder import export
from wsi_jax.data.cohort import CohortError
from wsi_jax.methods.attention_pooling import AttentionPooling, Scoring
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder
from wsi_jax.nets.crop_options import HeadConfig
from wsi_jax.nets.crop_sampler import SamplingConfig
from wsi_jax.nets.overview_attention import OverviewConfig
from wsi_jax.nets.tile_pooling import PoolingHead
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.run_folder import RunError
from wsi_jax.slides.grid import Grid
from wsi_jax.training.log import read_metrics

TRUNK = ConvNeXtEncoder(blocks=(1,), width=8, stem=4, scale=1.0)


@pytest.fixture
def crop_config(tiny):
    """The tiny config, of overviews and crops instead of features."""

    def config(method=None, **fields):
        made = tiny()
        made.features, made.encoder = "", None
        made.grid = Grid(mpp=16.0, size_px=4, min_tissue=0.5)  # one shape for all
        trunk = dataclasses.replace(TRUNK)
        small = {"trunk": trunk, "mpps": (4.0, 8.0), "crop_px": 16, "crops": 4}
        small |= {"overview": OverviewConfig(channels=4, layers=1)}
        small |= {"head": HeadConfig(width=8, unit_length=True)}
        small |= {"sampling": SamplingConfig(draws=2)}
        made.method = method or AttentionSampling(**(small | fields))
        made.train.batch, made.train.class_weights = 4, False
        made.train.steps, made.train.validate_every = 8, 4
        made.train.save_every = made.train.log_every = 4
        return made

    return config


@pytest.mark.parametrize(
    "resident", [False, pytest.param(True, marks=pytest.mark.long)]
)
def test_a_run_of_attention_sampling(crop_config, tmp_path, resident):
    folder = tmp_path / "run"
    config = crop_config(resident=resident)
    config.train.batch = 8 if resident else 4  # a row for every device
    report = experiment.run(config, folder).read_text()
    sentence = (
        "Overviews at 16 um/px; 4 crops of 16 px at 4 or 8 um/px, chosen by attention"
    )
    assert sentence in report
    assert "Magnification" in report
    metrics = read_json(folder / "metrics.json")
    mass = [metrics[f"test.mass.{mpp}"] for mpp in (4, 8)]
    np.testing.assert_allclose(sum(mass), 1, rtol=1e-5)
    for inference in ("sampled", "top"):
        assert 0 <= metrics[f"test.inference.{inference}.auc"] <= 1
    assert metrics["test.inference.sampled.auc"] == metrics["test.auc"]
    cost = read_json(folder / "cost.json")
    assert cost["slides"] == 20
    assert cost["bytes_decoded"] > 0
    assert len(list((folder / "heatmaps").glob("*.png"))) == 2

    lines = by_slide(folder / "predictions.csv")
    slides = by_slide(folder / "slides.csv")
    predictor = wsi_jax.load(folder)
    name = next(iter(lines))
    prediction = predictor.predict(slides[name]["path"])
    assert len(prediction.attention) == len(prediction.yx) == int(slides[name]["tiles"])
    np.testing.assert_allclose(prediction.attention.sum(), 1, rtol=1e-5)
    assert set(prediction.probabilities) == {"normal", "tumor"}
    # An overview and eight crops; on the device an overview and both planes.
    assert prediction.cost["tiles"] == (3 if resident else 9)
    prediction.heatmap(tmp_path / "heat.png")


def test_attention_pooling_end_to_end(crop_config, edited, tmp_path):
    """All tiles are scored, some pooled; opened again it predicts the same."""
    folder = tmp_path / "pooled"
    trunks = {name: dataclasses.replace(TRUNK) for name in ("scorer", "trunk")}
    method = AttentionPooling(
        **trunks, mpp=4.0, tile_px=16, best=3, worst=2,
        scoring=Scoring(steps=4, validate_every=2, tiles=2, renew=2, chunk=32),
        head=PoolingHead(width=8, attention_width=4),
    )  # fmt: skip
    config = crop_config(method)
    config.heatmaps = 1
    report = experiment.run(config, folder).read_text()
    assert "the prediction rests on the 3 highest and 2 lowest" in report
    for stage, steps in (("scorer", 4), ("classifier", 8)):
        lines = read_metrics(folder / stage / "metrics.jsonl")
        assert max(line["step"] for line in lines) == steps
    slides = by_slide(folder / "slides.csv")
    line = table(folder / "predictions.csv")[0]
    slide = slides[line["slide_id"]]
    prediction = wsi_jax.load(folder).predict(slide["path"])
    tiles = int(slide["tiles"])
    assert tiles > 5
    # Each is scored, and those that are kept are there already.
    assert prediction.cost["tiles"] == tiles
    assert len(prediction.attention) == len(prediction.yx) == tiles
    assert (prediction.attention > 0).sum() == 5
    np.testing.assert_allclose(
        prediction.probabilities["tumor"], float(line["p_tumor"]), atol=1e-5
    )
    export(folder, tmp_path / "scorer.safetensors")
    scorer = dataclasses.replace(TRUNK, weights=str(tmp_path / "scorer.safetensors"))
    # What the scorer has learnt from is not tested on either.
    config.method.scorer = scorer
    turned = {"train": "test", "test": "train"}
    swap = lambda row: row | {"split": turned.get(row["split"], row["split"])}
    config.data.manifest = str(edited(swap))
    with pytest.raises(CohortError, match="encoder"):
        experiment.run(config, tmp_path / "again")
    config.method.scorer = dataclasses.replace(TRUNK, weights="gone.safetensors")
    with pytest.raises(RunError, match=r"config\.method\.scorer\.weights=gone"):
        config.validate()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method.mpps", (0.1, 8.0), "0.1 um/px was asked for"),
        ("method.trunk.weights", "gone", r"method\.trunk\.weights=gone: no such file"),
        ("features", "there", "no features are made"),
        ("method.crops", 0, r"config\.method\.crops=0"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    crop_config, tmp_path, field, value, message
):
    with pytest.raises((RunError, ValueError), match=message):
        experiment.run(with_field(crop_config(), field, value), tmp_path / "run")
