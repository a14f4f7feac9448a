"""A practice cohort in BACH's layout, and a cross-validation of it."""

import csv
import dataclasses
import json
import pathlib
import runpy

import numpy as np
import pytest

from experiments.bach import Bach
from experiments.phantoms.cohort_folder import MakeCohortError
from experiments.phantoms.make_bach import (
    PATIENTS,
    Field,
    MakeBach,
    draw_field,
    make_bach,
)
from experiments.phantoms.texture_sources import Folder, SourceError
from wsi_jax.data.bach import CLASSES, MPP, read_bach
from wsi_jax.data.cohort import CohortError, read_manifest
from wsi_jax.data.splits import use_fold
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.checks import check_cohort
from wsi_jax.slides.mpp_metadata import MppError
from wsi_jax.slides.slide import open_slide

TINY = pathlib.Path(__file__).parent.parent / "experiments/tiny.py"


def small(folder, **changes) -> MakeBach:
    settings = {
        "per_class": 3,
        "patients": 3,
        "styles": 8,
        "height": 192,
        "width": 256,
        "workers": 2,
    }
    return MakeBach(out=str(folder), **(settings | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bach")
    make_bach(small(folder))
    return folder


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.tif"))}


def test_it_reads_as_bach(folder):
    cohort = read_bach(folder, patients=folder / PATIENTS)
    assert cohort.classes == CLASSES
    assert len(cohort.rows) == 12
    for row in cohort.rows:
        with pytest.raises(MppError):  # nor do BACH's say it
            open_slide(row.path)
        with open_slide(row.path, mpp=MPP) as slide:
            assert slide.shape == (192, 256)
            assert len(slide.levels) == 1
        kinds = {name.split(":")[0] for name in row.cluster.split(";")}
        assert (
            kinds - {"normal"}
            == {
                "Normal": set(),
                "Benign": {"small_cell"},
                "InSitu": {"tumor"},
                "Invasive": {"small_cell", "tumor"},
            }[row.label]
        )


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


def test_a_second_run_draws_only_what_is_missing_and_draws_it_the_same(folder):
    before = bytes_of(folder)
    times = {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.tif")}
    (folder / "Photos/InSitu/is002.tif").unlink()
    make_bach(small(folder, workers=1))
    assert bytes_of(folder) == before
    again = {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.tif")}
    assert {n for n in times if times[n] != again[n]} == {"is002.tif"}
    assert not [p for p in folder.rglob(".*") if p.is_file()]


def test_another_cohort_is_refused(folder, tmp_path):
    with pytest.raises(MakeCohortError, match=r"seed=0, asked for is 1; name another"):
        make_bach(small(folder, seed=1))
    with pytest.raises(MakeCohortError, match=r"add --config\.out"):
        make_bach(MakeBach())
    with pytest.raises(CohortError, match=r"add --config\.data\.root"):
        Bach().cohort()
    with pytest.raises(
        SourceError, match=r"patient \d+ of 9; lower --config\.patients"
    ):
        make_bach(small(tmp_path, patients=9, styles=4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 8},
        {"share": (0.6, 0.2)},
        {"tiles": "x", "kinds": ("a", "b", "c")},
    ],
    ids=str,
)
def test_a_field_that_cannot_be_drawn(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"--config.{list(wrong)[-1]}="):
        make_bach(small(tmp_path, **wrong))


def test_real_tiles(shared):
    """The class decides what fills the regions, and nothing else."""
    config = small("", height=576, width=768, patients=2)
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


def test_a_cross_validation(folder, tmp_path):
    config = runpy.run_path(str(TINY))["get_config"]()
    practice = small("")
    config.data = Bach(root=str(folder), folds=3, practice=practice)
    config.grid = dataclasses.replace(config.grid, mpp=0.84, min_tissue=0.0)
    config.heatmaps, config.train.steps = 0, 10
    run = tmp_path / "run"
    experiment.run(config, run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test.n"] == 12
    with open(run / "predictions.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["slide_id"] for line in lines} == {
        row.slide_id for row in read_manifest(run / "manifest.csv").rows
    }
    assert {f"p_{name}" for name in CLASSES} < set(lines[0])
    assert {line["patient_id"] for line in lines} == {
        "patient_01",
        "patient_02",
        "patient_03",
    }
    assert "The slides are drawn, not scanned" in (run / "report.html").read_text()
