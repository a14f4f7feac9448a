"""Every command of a page runs, one after the other, in a folder as the page takes it.

A comment above a block says what it needs that is not here. Of `weights` or `data` each
command must be refused for the lack of a file, and for nothing else; what needs a
`machine` (an accelerator, a cluster, Docker), a `network` or `hours` is not run.
"""

import csv
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from clam_project import write_bag, write_project

from wsi_jax.data.cohort import read_manifest
from wsi_jax.data.split_files import write_clam

ROOT = pathlib.Path(__file__).parent.parent
BLOCK = re.compile(r"(?:<!-- needs (\w+) -->\n)?^```(\w*)\n(.*?)^```", re.M | re.S)
LACKS = "no such|not a folder|is not there|no cohort|No such file"
# Pages of names and generated ones have no commands.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page):
    """(what it needs, text) of each block of commands."""
    for needs, kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind in ("", "bash", "sh"):
            yield needs, text


def shell(text, folder):
    """Runs a block; gives (exit status, all that it printed)."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def must_run(text, folder):
    status, printed = shell(text, folder)
    assert status == 0, f"{text}\n{printed[-2000:]}"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A checkout with slides, labels, splits, features and runs by the pages' names."""
    base = tmp_path_factory.mktemp("pages")
    for name in ("experiments", "wsi_jax", "tests"):
        (base / name).symlink_to(ROOT / name)
    must_run(
        "python -m experiments.phantoms.make_cohort "
        "--config experiments/configs/practice.py --config.out=. --config.styles=4 "
        "--config.prevalence=0.5 --config.side_px=1024 "
        "--config.n_train=12 --config.n_val=4 --config.n_test=8",
        base,
    )
    cohort = read_manifest(base / "slides.csv")
    for name in ("my_slides", "other_hospital", "more"):
        shutil.copy(base / "slides.csv", base / f"{name}.csv")
    slides = base / "SLIDES"
    slides.mkdir()
    for row in cohort.rows:
        shutil.copy(row.path, slides / f"{row.slide_id}.tif")
        x = np.random.default_rng(len(row.path)).normal(size=(20, 16))
        xy = np.stack([256 * np.arange(20), np.zeros(20)], 1)
        write_bag(base / f"FEATURES/h5_files/{row.slide_id}.h5", x, xy)
    (base / "FOLDER").symlink_to("FEATURES/h5_files")
    shutil.copy(slides / f"{cohort.rows[-1].slide_id}.tif", base / "slide.svs")
    write_clam(base, cohort, 0)
    shutil.copy(base / "dataset.csv", base / "labels.csv")
    for file, copy in {
        "dataset.csv": "dataset_csv/my_task.csv",
        "splits_0.csv": "splits/my_task/splits_0.csv",
    }.items():
        (base / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(base / file, base / copy)
    tables = {
        "wsis.csv": [("wsi", "mpp")]
        + [(f"{r.slide_id}.tif", r.mpp) for r in cohort.rows],
        "splits.csv": [("bag_name", "split")]
        + [(r.slide_id, r.split) for r in cohort.rows],
    }
    for name, lines in tables.items():
        with open(base / name, "w", newline="") as file:
            csv.writer(file).writerows(lines)
    trident = base / "JOB/20x_256px_0px_overlap"
    trident.mkdir(parents=True)
    (trident / "features_uni_v1").symlink_to(base / "FEATURES/h5_files")
    write_project(base / "PROJECT")
    must_run(
        "wsi-jax train --method quick --manifest my_slides.csv "
        "--config.run_dir=runs/abmil --config.train.steps=40 --config.heatmaps=1",
        base,
    )
    for name in ("clam_sb", "seed_0", "seed_1", "cv/fold_0", "cv/fold_1"):
        shutil.copytree(base / "runs/abmil", base / "runs" / name)
    return base


@pytest.mark.long
@pytest.mark.parametrize(
    "page", [one for one in PAGES if any(blocks(one))], ids=lambda page: page.stem
)
def test_the_commands_of_a_page_run(page, workspace, tmp_path):
    folder = tmp_path / "page"
    shutil.copytree(workspace, folder, symlinks=True)
    if page.stem == "predict":  # its FOLDER has slides of other names, not features
        (folder / "FOLDER").unlink()
        (folder / "FOLDER").mkdir()
        one = next((workspace / "SLIDES").glob("*.tif"))
        (folder / "FOLDER" / "of_another_name.tif").symlink_to(one)
    elif page.stem != "report":  # a page that trains begins without runs
        shutil.rmtree(folder / "runs")
    for needs, text in blocks(page):
        if not needs:
            must_run(text, folder)
        elif needs in ("weights", "data"):
            for command in re.split(r"(?<!\\)\n", text.strip()):
                status, printed = shell(command, folder)
                last = printed.strip().splitlines()[-1:]
                assert status == 1, f"{command}\n{printed[-2000:]}"
                assert re.search(LACKS, *last), f"{command}\n{printed[-2000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_block_needs_is_one_of_few_things(page):
    reasons = {needs for needs, _ in blocks(page)}
    assert reasons <= {"", "weights", "data", "machine", "network", "hours"}
    text = page.read_text(encoding="utf-8")
    assert len(re.findall("<!-- needs ", text)) == sum(
        bool(needs) for needs, _, _ in BLOCK.findall(text)
    )
