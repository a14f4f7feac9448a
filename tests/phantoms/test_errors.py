"""What goes wrong while a synthetic cohort is made or certified is one message."""

import errno
import json
import os
import shutil
import sys

import pytest
from words import config_from

from experiments.camelyon16 import Camelyon16
from experiments.phantoms import certify as certifier
from experiments.phantoms import make_cohort
from experiments.phantoms.presets import Preset
from wsi_jax.data.cohort import CohortError

PRACTICE = "experiments/configs/practice.py"
SMALL = {"n_train": 4, "n_val": 2, "n_test": 4, "side_px": 512, "styles": 8}


@pytest.fixture
def command(tmp_path, request):
    """Runs make_cohort with these words in this process; what it ends with."""

    def run(*words):
        given = {"out": tmp_path / "cohort", "workers": 2} | SMALL
        line = [f"--config.{name}={value}" for name, value in given.items()]
        file = str(request.config.rootpath / PRACTICE)
        words = "--config", file, *line, *words
        with (
            pytest.raises(SystemExit) as stop,
            config_from(*words, kind="MakeCohort") as config,
        ):
            make_cohort.main(config, "cohort")
        return stop.value.code

    return run


@pytest.fixture
def certify(monkeypatch):
    """Runs certify on a folder in this process; what it ends with."""

    def run(folder):
        monkeypatch.setattr(sys, "argv", ["certify", "--cohort", str(folder)])
        with pytest.raises(SystemExit) as stop:
            certifier.main()
        return stop.value.code

    return run


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.presett=needle", "did you mean --config.preset?"),
        ("--config.preset=nedle", "<plain|fine_only|"),
        ("--config.side_px=0", "--config.side_px=0: 64 or more"),
        ("--config.prevalence=2", "--config.prevalence=2.0: from 0 to 1"),
        ("--config.mpp=0", "--config.mpp=0.0: above 0"),
        (
            "--config.artefacts.mpps=big",
            "--config.artefacts.mpps=('big',): not several",
        ),
        ("--config.artefacts.quality=(90,70)", "least and most, as (70,90)"),
        ("--config.tiles=nowhere", "SourceError: nowhere/index.csv: no such file"),
    ],
)
def test_a_wrong_word_is_one_line_before_anything(command, tmp_path, word, message):
    line = command(word)
    assert message in line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "cohort").exists()


def test_a_full_disk_is_named_and_no_other_slide_is_begun(
    command, tmp_path, monkeypatch
):
    begun = []

    def full(path, *rest):
        begun.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(make_cohort, "write_pyramid", full)
    message = command("--config.workers=1", "--config.n_train=30")
    assert message.startswith(f"{begun[0]}: no space left on its disk. Free some")
    assert len(begun) < 5


def test_a_claim_that_is_damaged_is_named(command, tmp_path):
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort/cohort.json").write_text("{")
    message = command()
    assert message.startswith(
        f"MakeCohortError: {tmp_path}/cohort/cohort.json: damaged"
    )


def test_a_folder_without_a_cohort_is_not_certified(certify, tmp_path):
    message = certify(tmp_path / "typo")
    assert message.startswith(
        f"MakeCohortError: {tmp_path}/typo/cohort.json: no such file"
    )
    for other in ({}, {"preset": "none"}, {"preset": "plain"}, {"kinds": ["normal"]}):
        (tmp_path / "cohort.json").write_text(json.dumps({"config": other}))
        message = certify(tmp_path)
        assert message.startswith(f"CertifyError: {tmp_path}: no cohort of slides that")
    plain = {"preset": "plain", "mpp": 1.0}
    (tmp_path / "cohort.json").write_text(json.dumps({"config": plain}))
    message = certify(tmp_path)
    assert message.startswith(f"CohortError: {tmp_path}/slides.csv: no such")


def test_a_mask_that_is_damaged_and_slides_that_are_too_few(certify, cohort, tmp_path):
    folder = shutil.copytree(cohort, tmp_path / "cohort")
    mask = folder / "masks/tumor_001_mask.png"
    whole = mask.read_bytes()
    mask.write_bytes(whole[:60])
    message = certify(folder)
    assert message.startswith(f"CertifyError: {mask}: cannot be read (")
    assert f"delete {folder}/training/tumor/tumor_001.tif and run" in message
    mask.write_bytes(whole)
    table = (folder / "slides.csv").read_text()
    lines = [line for line in table.splitlines() if ",test," not in line]
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    assert certify(folder).startswith("CertifyError: too few fields for probe 'field")


def test_a_preset_of_other_classes_is_refused_before_it_is_drawn(tmp_path):
    practice = make_cohort.MakeCohort(preset=Preset.THREE, **SMALL)
    data = Camelyon16(root=str(tmp_path / "three"), practice=practice)
    with pytest.raises(CohortError, match=r"preset=three has 3 .* experiments\.cohort"):
        data.cohort()
    assert not (tmp_path / "three").exists()
