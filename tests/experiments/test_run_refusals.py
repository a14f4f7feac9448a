"""A cohort, an encoder or a batch that cannot be used stops the run before encoding."""

import dataclasses

import jax
import pytest
from words import with_field

from wsi_jax.data.cohort import CohortError
from wsi_jax.nets import pretrained
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.weights_metadata import WeightsMetadata, to_header
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.run_folder import RunError


def stops_before_encoding(config, folder, message):
    """And leaves no claim, so that the same command works once the fault is mended."""
    config.features = str(folder / "features")
    with pytest.raises(ValueError, match=message):
        experiment.run(config, folder / "run")
    assert not list(folder.rglob("*.h5"))
    assert not (folder / "run").exists()


def test_a_class_whose_every_slide_of_a_split_is_refused_stops_it(
    short, edited, tmp_path
):
    def lose(row):
        lost = row["split"] == "val" and row["label"] == "tumor"
        return row | {"path": f"gone/{row['slide_id']}.tif"} if lost else row

    short.data.manifest = str(edited(lose))
    with pytest.raises(CohortError, match="split 'val' has no slide of class 'tumor'"):
        experiment.run(short, tmp_path / "run")


def without(split):
    return lambda row: row if row["split"] != split else None


def leak(row):
    patient = row["patient_id"].replace("patient_001", "patient_020")
    return row | {"patient_id": patient}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (leak, "patient_020' is in splits 'train' and"),
        (without("train"), "no slide in split 'train'"),
        (without("val"), "no slide in split 'val'"),
        (without("test"), "no slide in split 'test'"),
    ],
)
def test_a_cohort_with_a_leak_or_without_a_split_stops_the_run(
    short, edited, tmp_path, change, message
):
    short.data.manifest = str(edited(change))
    stops_before_encoding(short, tmp_path, message)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.manifest", "", r"add --config\.data\.manifest"),
        ("encode_batch", 12, r"--config\.encode_batch=12 does not divide among 8 dev"),
        ("encoder.norm", NormKind.frozen, r"norm=frozen .*weights=FILE"),
    ],
)
def test_a_field_that_cannot_be_used_stops_the_run(
    short, tmp_path, field, value, message
):
    stops_before_encoding(with_field(short, field, value), tmp_path, message)


def test_an_encoder_of_another_resolution_stops_the_run(short, tmp_path):
    """What it has learnt at stands in its weights; a few per cent are no matter."""
    encoder = short.encoder
    net = jax.device_get(encoder.params()["params"])

    def learnt_at(mpp):
        path = tmp_path / f"{mpp}.safetensors"
        made = WeightsMetadata(
            encoder.describe(), ("a", "b"), (), {"config": {"mpp": mpp}}
        )
        pretrained.save(path, net, to_header(made))
        return dataclasses.replace(encoder, weights=str(path))

    short.encoder = learnt_at(1.96)
    short.validate()
    short.encoder = learnt_at(1.0)
    message = r"learnt from tiles at 1 um/px, and --config\.grid\.mpp=2"
    stops_before_encoding(short, tmp_path, message)


def test_a_manifest_edited_after_a_run_is_another_run(short, edited, tmp_path):
    """The old report is not handed out for it."""
    short.train.steps = 2
    short.data.manifest = str(edited(lambda row: row))
    report = experiment.run(short, tmp_path / "run")
    assert experiment.run(short, tmp_path / "run") == report
    edited(lambda row: row | {"site": "elsewhere"})  # decides nothing
    assert experiment.run(short, tmp_path / "run") == report
    edited(lambda row: row | {"patient_id": f"x{row['patient_id']}"})
    with pytest.raises(RunError, match="began with another cohort: slide 'normal_001'"):
        experiment.run(short, tmp_path / "run")
