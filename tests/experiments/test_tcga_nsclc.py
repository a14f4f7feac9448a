"""Two projects of TCGA: which cancer it is, and splits that let patients leak."""

import json
import shutil

import pytest
from absl import logging

from experiments.tcga_nsclc import TcgaNsclc
from wsi_jax.data.cohort import CohortError


@pytest.fixture(scope="module")
def gdc(shared, tmp_path_factory):
    """Five patients of each project; the first of LUAD has two slides."""
    folder = tmp_path_factory.mktemp("gdc")
    for project, code in (("luad", "A"), ("lusc", "B")):
        for i in range(6 if project == "luad" else 5):
            name = f"TCGA-{code}1-000{i % 5}-01Z-00-DX{i // 5 + 1}.{code}{i}.svs"
            path = folder / project / f"uuid-{i}" / name
            path.parent.mkdir(parents=True)
            shutil.copyfile(shared / "data/slides/CMU-1-Small-Region.svs", path)
    return folder


def data(gdc, **changes):
    folders = {name: str(gdc / name) for name in ("luad", "lusc")}
    return TcgaNsclc(**(folders | changes))


def test_the_cohort(gdc):
    rows = data(gdc).cohort().rows
    assert {row.label for row in rows} == {"LUAD", "LUSC"}
    assert all(("-A1-" in row.slide_id) == (row.label == "LUAD") for row in rows)
    twice = [row.split for row in rows if row.patient_id == "TCGA-A1-0000"]
    assert len(twice) == 2
    assert len(set(twice)) == 1
    folds = {row.fold for row in data(gdc, folds=3).cohort().rows}
    assert folds == {"0", "1", "2"}


@pytest.mark.parametrize("name", ["luad", "lusc"])
def test_a_missing_folder_is_named(gdc, name):
    with pytest.raises(CohortError, match=rf"add --config\.data\.{name}="):
        data(gdc, **{name: ""}).cohort()


def test_one_folder_for_both_is_refused(gdc):
    with pytest.raises(CohortError, match="give each project its own folder"):
        data(gdc, lusc=str(gdc / "luad")).cohort()


def test_patients_that_leak_are_counted(gdc, tmp_path, caplog):
    names = sorted(row.slide_id for row in data(gdc).cohort().rows)
    first, second = (name for name in names if "TCGA-A1-0000" in name)
    others = [name for name in names if name not in (first, second)]
    parts = {
        "train_names": [first, *others[:4]],
        "val_names": others[4:6],
        "test_names": [second, *others[6:8], "TCGA-XX-0000-01Z-00-DX1.none"],
    }
    path = tmp_path / "split_1.json"
    path.write_text(json.dumps(parts))
    logging.use_absl_handler()
    with caplog.at_level("WARNING", logger="absl"):
        cohort = data(gdc, leaking_split=str(path)).cohort()
    assert "1 in train and test, 0 in train and val, 0 in val and test" in caplog.text
    assert "1 of its slides are not there" in caplog.text
    by = {row.slide_id: row for row in cohort.rows}
    assert len(by) == 10
    assert (by[first].split, by[second].split) == ("train", "test")
    assert by[first].patient_id == first
