"""A bad file or flag stops the run with one message that names it and what mends it.

The same command works once it is mended.
"""

import re

import numpy as np
import pytest

from wsi_jax.commands import config_command_line
from wsi_jax.data.cohort import write_manifest
from wsi_jax.run import checks
from wsi_jax.run.run_folder import RunError, check_claim, read_json
from wsi_jax.training.log import read_metrics


def test_a_bad_manifest_stops_before_anything(command, edited, tmp_path):
    path = edited(lambda row: row | {"label": "tumour"})
    classes = "--config.data.classes=('normal','tumor')"
    message = command(f"--config.data.manifest={path}", classes)
    assert re.match(r"CohortError: .*edited\.csv, line 2: label 'tumour' of ", message)
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_in_place_of_a_manifest_names_the_commands_for_folders(
    command, tmp_path
):
    message = command(f"--config.data.manifest={tmp_path}")
    assert message.startswith(f"CohortError: {tmp_path}: a folder, not a CSV; ")
    assert "experiments.extract_features" in message


def test_a_file_for_a_folder_is_one_line(command, tmp_path):
    """As the run's, the features', or above one of them."""
    file = tmp_path / "file"
    file.write_text("in the way")
    for flag in ("run_dir", "features"):
        for path in (file, file / "below"):
            run = f"--config.run_dir={tmp_path / f'{flag}_{path.name}'}"
            message = command(run, f"--config.{flag}={path}")
            assert message.startswith(str(path))
            assert message.endswith(", and a folder is wanted; name another")
            assert len(message.splitlines()) == 1


@pytest.mark.parametrize("text", [b"{", b"[]", b"{}", b'{"config": 3}', b"\xff"])
@pytest.mark.parametrize("name", ["config.json", "cost.json"])
def test_a_damaged_file_of_a_run_is_named(tiny, tmp_path, name, text):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / name
    path.write_bytes(text)
    if name == "config.json":
        read = lambda: check_claim(path.parent, tiny())
    else:
        read = lambda: read_json(path, "config")
    with pytest.raises(RunError, match=rf"{name}: damaged .*; put back what was ther"):
        read()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "denied", "a"), "a: may not be read or written; ask"),
        (IsADirectoryError(21, "is one", "a"), "a: is a folder, and a file is wanted"),
        (FileNotFoundError(2, "none", "a"), "a: is not there; mend the path"),
        (OSError(30, "Read-only", "a"), "a: may only be read; name another folder"),
        (OSError(5, "I/O error", "a"), "a: I/O error; see that its disk answers, and"),
    ],
)
def test_what_a_disk_refuses_names_the_file(error, message, tmp_path):
    assert config_command_line.error_message(error, tmp_path).startswith(message)


@pytest.mark.parametrize("word", ["tissue.source=MUSK", "grid.mpp=-1"])
def test_a_wrong_value_stops_before_anything(command, tmp_path, word):
    message = command(f"--config.{word}")
    assert f"--config.{word}" in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_stops_and_nothing_is_lost(command, tiny, tmp_path):
    """Its features serve the next run; no checkpoint holds a number that is none."""
    wild = ("--config.train.optimiser.learning_rate=1e30", "--config.train.log_every=1")
    message = command(*wild, "--config.train.steps=30")
    assert message.startswith("DivergedError: step ")
    assert "is not finite; lower --config.train.optimiser.learning_rate" in message
    assert "--config.run_dir" in message
    for line in read_metrics(tmp_path / "run" / "train" / "metrics.jsonl"):
        assert np.isfinite([*line.values()]).all()
    assert not (tmp_path / "run" / "model.json").exists()
    message = command("--config.train.optimiser.learning_rate=1e-3")
    assert "train.optimiser.learning_rate: was 1e+30, is 0.001" in message
    assert message.splitlines()[-1].endswith(f"--config.features={tiny().features})")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "normal"}, "label 'tumor' is now 'normal'"),
        ({"mpp": "0.6"}, "mpp 0.[58] is now 0.6"),
        ({"split": "train"}, "split 'test' is now 'train'"),
    ],
)
def test_a_manifest_that_has_changed_is_another_run(
    tiny, edited, tmp_path, change, message
):
    """Neither the old report nor a training that has seen what now tests."""
    config = tiny()
    before, cohort = tmp_path / checks.MANIFEST, config.data.cohort()
    write_manifest(before, cohort)
    checks.check_unchanged(before, cohort)
    tumor = next(
        row.slide_id
        for row in cohort.rows
        if (row.label, row.split) == ("tumor", "test")
    )
    config.data.manifest = str(
        edited(lambda row: row | change if row["slide_id"] == tumor else row)
    )
    with pytest.raises(RunError, match=f"slide '{tumor}': {message}"):
        checks.check_unchanged(before, config.data.cohort())
