"""Slides that an encoder may have seen are known by their names."""

import pytest

from wsi_jax.data.cohort import Cohort, Row
from wsi_jax.data.public_cohorts import PATTERNS, guess_public_cohort, pretraining_note
from wsi_jax.nets.foundation_models import foundation_model, model_names
from wsi_jax.run.config import Experiment
from wsi_jax.run.write_report import write_report


@pytest.mark.parametrize(
    ("name", "cohort"),
    [
        ("TCGA-2A-A8VL-01Z-00-DX1.2C2B", "TCGA"),
        ("C3L-00004-21", "CPTAC"),
        ("11LU013-abc", "CPTAC"),
        ("GTEX-1117F-0126", "GTEx"),
        ("tumor_001", "CAMELYON16"),
        ("test_130", "CAMELYON16"),
        ("patient_004_node_4", "CAMELYON17"),
        ("0005f7aaab2800f6170c399693a96917", "PANDA"),
        ("tumor_1", ""),
        ("my_TCGA-2A-A8VL", ""),
        ("0005f7aaab2800f6170c399693a96917b", ""),
    ],
)
def test_a_name_tells_the_cohort(name, cohort):
    assert guess_public_cohort(name) == cohort
    assert guess_public_cohort("hers", name) == cohort


def test_only_test_slides_of_a_cohort_that_was_learnt_from_are_named():
    rows = [
        Row("TCGA-2A-A8VL-01Z", "", "a", "p", "train"),
        Row("TCGA-2A-A8VO-01Z", "", "a", "q", "test"),
        Row("s", "/x/TCGA-2A-A8W1-01Z.svs", "b", "r", "test"),
        Row("normal_001", "", "b", "t", "test"),
    ]
    cohort = Cohort(tuple(rows), ("a", "b"))
    note = pretraining_note(cohort, foundation_model("phikon").pretrained_on)
    assert note.startswith("2 of 3 test slides seem to be of TCGA, which the encoder")
    assert "TCGA-2A-A8VO-01Z, s)" in note
    assert pretraining_note(cohort, ("MSKCC", "GTEx")) == ""


def test_a_report_names_them():
    rows = [Row("TCGA-2A-A8VO-01Z", "", "a", "q", "test")]
    encoder = foundation_model("lunit_s8").encoder
    limitations = lambda **kwargs: "\n".join(
        write_report.limitations(
            Experiment(encoder=encoder, **kwargs), Cohort(tuple(rows), ("a", "b"))
        )
    )
    assert "Pre-training: 1 of 1 test slides seem to be of TCGA" in limitations()
    assert "Pre-training" not in limitations(precomputed="features")


def test_cohorts_of_encoders_are_spelt_as_their_patterns():
    """A misspelt one would never be noticed."""
    plain = {name.casefold(): name for name in PATTERNS}
    for name in model_names():
        model = foundation_model(name)
        assert model.encoder.pretrained_on == model.pretrained_on
        for cohort in model.pretrained_on:
            assert plain.get(cohort.casefold(), cohort) == cohort


def test_what_it_has_seen_changes_no_fingerprint():
    encoder = foundation_model("phikon").encoder
    before = encoder.describe()
    encoder.pretrained_on = ()
    assert encoder.describe() == before
