"""On the mock data of TFDS: its own features, random values."""

import numpy as np
import pytest

from experiments.pretraining.patch_camelyon import (
    CLASSES,
    MPP,
    TRAINING_IDS,
    load_patch_camelyon,
)
from experiments.pretraining.pretrain_config import PretrainPatchCamelyon
from wsi_jax.data.cohort import Cohort, CohortError, Row
from wsi_jax.data.lint import lint
from wsi_jax.data.tensorflow import import_tf

import_tf()
import tensorflow_datasets as tfds  # noqa: E402


def test_its_splits_become_ours():
    with tfds.testing.mock_data(num_examples=7):
        whole = load_patch_camelyon(None, mpp=MPP)
        coarse = PretrainPatchCamelyon(mpp=2 * MPP, most=3).sets()
    assert whole.classes == CLASSES
    for tiles in whole[:3]:
        assert tiles.pixels.shape == (7, 96, 96, 3)
        assert tiles.pixels.dtype == np.uint8
        assert set(tiles.label) <= {0, 1}
        assert len(set(tiles.name)) == len(tiles.label) == 7
    for tiles, first in zip(coarse[:3], whole[:3], strict=True):
        assert tiles.pixels.shape == (3, 48, 48, 3)
        np.testing.assert_array_equal(tiles.label, first.label[:3])
        assert tiles.name == first.name[:3]
        assert tiles.pixels.std() < 0.7 * first.pixels.std()


def test_data_that_are_not_prepared_are_named(tmp_path):
    with pytest.raises(CohortError, match=r"is not in .*tfds build patch_camelyon"):
        load_patch_camelyon(tmp_path, mpp=MPP)
    with pytest.raises(CohortError, match=r"no detail of 0\.5"):
        load_patch_camelyon(tmp_path, mpp=0.5)


def test_it_may_serve_the_official_test_slides_and_no_others():
    assert len(TRAINING_IDS) == 271
    row = lambda i, split, name: Row(name, "", ("normal", "tumor")[i % 2], name, split)
    train = [row(i, "train", f"{('normal', 'tumor')[i % 2]}_00{i}") for i in range(4)]
    official = [row(i, "test", f"test_00{i}") for i in range(4)]
    cohort = Cohort((*train, *official), ("normal", "tumor"))
    lint(cohort, TRAINING_IDS)
    fold = [row(i, "test", f"{('normal', 'tumor')[i % 2]}_10{i}") for i in range(4)]
    with pytest.raises(CohortError, match=r"'tumor_103': the encoder has learnt from"):
        lint(cohort._replace(rows=(*train, *fold)), TRAINING_IDS)
