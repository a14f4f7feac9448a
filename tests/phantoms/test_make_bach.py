"""A practice cohort in BACH's layout, and a cross-validation of it."""

import numpy as np
import pytest

from experiments.bach import Bach
from experiments.phantoms.make_bach import (
    PATIENTS,
    Field,
    MakeBach,
    draw_field,
    make_bach,
)
from experiments.phantoms.texture_sources import Folder, SourceError
from wsi_jax.data.bach import CLASSES, MPP, read_bach
from wsi_jax.data.cohort import CohortError
from wsi_jax.data.splits import use_fold
from wsi_jax.run.checks import check_cohort
from wsi_jax.slides.mpp_metadata import MppError
from wsi_jax.slides.slide import open_slide


@pytest.fixture
def folder(made):
    return made(make_bach).folder


def test_it_reads_as_bach(folder):
    cohort = read_bach(folder, patients=folder / PATIENTS)
    assert cohort.classes == CLASSES
    assert len(cohort.rows) == 12
    wanted = ((), ("small_cell",), ("tumor",), ("small_cell", "tumor"))
    wanted = dict(zip(CLASSES, map(set, wanted), strict=True))
    for row in cohort.rows:
        with pytest.raises(MppError):  # nor do BACH's have one
            open_slide(row.path)
        with open_slide(row.path, mpp=MPP) as slide:
            assert (slide.shape, len(slide.levels)) == ((192, 256), 1)
        kinds = {name.split(":")[0] for name in row.cluster.split(";")}
        assert kinds - {"normal"} == wanted[row.label]


def test_folds_are_by_patient_and_share_no_tile(folder):
    cohort = Bach(root=str(folder), patients=str(folder / PATIENTS), folds=3).cohort()
    assert {row.mpp for row in cohort.rows} == {MPP}
    for fold in range(3):
        part = use_fold(cohort, fold)
        assert {n.slides for n in check_cohort(part, ()).counts} == {1}
        patients, clusters = {}, {}
        for row in part.rows:
            patients.setdefault(row.split, set()).add(row.patient_id)
            clusters.setdefault(row.split, set()).update(row.cluster.split(";"))
        for parts in (patients, clusters):
            assert not parts["train"] & parts["test"]
            assert not parts["val"] & parts["test"]
    drawn = Bach(root=str(folder), patients=str(folder / PATIENTS), folds=0).cohort()
    assert {row.split for row in drawn.rows} == {"train", "val", "test"}


def test_what_is_missing_is_named(made, tmp_path):
    with pytest.raises(CohortError, match=r"add --config\.data\.root"):
        Bach().cohort()
    few = made(make_bach).config(out=str(tmp_path), patients=9, styles=4)
    with pytest.raises(
        SourceError, match=r"patient \d+ of 9; lower --config\.patients"
    ):
        make_bach(few)


@pytest.mark.parametrize(
    "wrong",
    [{"height": 8}, {"share": (0.6, 0.2)}, {"tiles": "x", "kinds": ("a", "b", "c")}],
    ids=str,
)
def test_a_field_that_cannot_be_drawn(made, wrong):
    with pytest.raises(ValueError, match=f"--config.{list(wrong)[-1]}="):
        make_bach(made(make_bach).config(**wrong))


def test_real_tiles(shared):
    """The class decides what fills the regions, and nothing else."""
    config = MakeBach(height=576, width=768, patients=2)
    kinds = ("colon_n", "colon_aca", "lung_n", "lung_scc")
    source = Folder(shared / "data/lc25000", kinds)
    drawn = []
    for label in range(4):
        field = Field(number=5, label=label, index=1, patient=1)
        pixels, clusters, share = draw_field(field, config, source, MPP)
        assert pixels.shape == (576, 768, 3)
        used = {name.split(":")[0] for name in clusters}
        assert used == {"colon_n", kinds[label]}
        drawn.append((pixels, share))
    assert len({share for _, share in drawn}) == 1
    for pixels, share in drawn[1:]:
        differs = (pixels != drawn[0][0]).any(-1).mean()
        assert differs == pytest.approx(share, abs=0.05)
    again, _, _ = draw_field(field, config, source, MPP)
    np.testing.assert_array_equal(again, drawn[-1][0])


def test_a_run_draws_its_own_cohort(made, folder):
    """And takes the patients of the practice cohort."""
    practice = made(make_bach).config(out="")
    data = Bach(root=str(folder), folds=3, practice=practice)
    patients = {row.patient_id for row in data.cohort().rows}
    assert patients == {"patient_01", "patient_02", "patient_03"}
    assert "The slides are drawn, not scanned" in data.limitations()[0]
