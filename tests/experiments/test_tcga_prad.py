"""Slides under TCGA's names, with a grade each: from the GDC's files to a report."""

import runpy
import shutil

import pytest
from run_files import read_json, table

from experiments.tcga_prad import TcgaPrad
from wsi_jax.data.cohort import CohortError
from wsi_jax.data.tcga import Grading
from wsi_jax.run import run_experiment as experiment


@pytest.fixture(scope="module")
def gdc(shared, tmp_path_factory):
    """Seven men, one with two slides, one without a grade; no two files are equal."""
    folder = tmp_path_factory.mktemp("gdc")
    lines = ["case_submitter_id\tprimary_gleason_grade\tsecondary_gleason_grade"]
    for i in range(8):
        number = i % 7
        man = f"TCGA-{'AB'[number % 2]}1-000{number}"
        path = folder / f"slides/uuid-{i}/{man}-01Z-00-DX{i // 7 + 1}.ABC-{i}.svs"
        path.parent.mkdir(parents=True)
        shutil.copyfile(shared / "data/slides/CMU-1-Small-Region.svs", path)
        with open(path, "ab") as file:
            file.write(bytes([i]))
        grades = ("Pattern 3", "Pattern 4") if number < 3 else ("Pattern 5",) * 2
        lines.append("\t".join((man, *(grades if number < 6 else ("'--", "'--")))))
    (folder / "clinical.tsv").write_text("\n".join(lines) + "\n")
    return folder


def data(gdc, **changes):
    settings = {
        "root": str(gdc / "slides"),
        "clinical": str(gdc / "clinical.tsv"),
        "grading": Grading.high_grade,
        "folds": 3,
    }
    return TcgaPrad(**(settings | changes))


def test_the_cohort(gdc):
    cohort = data(gdc).cohort()
    folds = {row.slide_id: row.fold for row in cohort.rows}
    assert len(folds) == 7
    assert (
        folds["TCGA-A1-0000-01Z-00-DX1.ABC-0"]
        == (folds["TCGA-A1-0000-01Z-00-DX2.ABC-7"])
    )
    assert {row.mpp for row in data(gdc, mpp=0.25).cohort().rows} == {None}
    assert data(gdc, samples=(1,)).cohort() == cohort  # as the command line has 01
    drawn = data(gdc, folds=0).cohort()
    assert {row.split for row in drawn.rows} == {"train", "val", "test"}
    for name in ("root", "clinical"):
        with pytest.raises(CohortError, match=rf"add --config\.data\.{name}="):
            data(gdc, **{name: ""}).cohort()


@pytest.mark.long
def test_a_cross_validation(gdc, tiny_file, tmp_path):
    config = runpy.run_path(str(tiny_file))["get_config"]()
    config.data = data(gdc)
    config.grid.mpp, config.heatmaps = 8.0, 0
    config.train.steps = 10
    run = tmp_path / "run"
    experiment.run(config, run)
    assert read_json(run / "metrics.json")["test.n"] == 7
    lines = table(run / "predictions.csv")
    assert {line["site"] for line in lines} == {"A1", "B1"}
    assert {line["label"] for line in lines} == {"low_grade", "high_grade"}
    assert len({line["patient_id"] for line in lines}) == 6
