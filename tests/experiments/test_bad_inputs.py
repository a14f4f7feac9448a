"""Everything that is wrong has one message that names it and what mends it.

A bad slide is recorded and the others go on; a bad file, flag or disk stops the run,
and the same command works once it is mended.
"""

import contextlib
import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
from PIL import Image
from words import config_from

from wsi_jax import cli
from wsi_jax.data.disk_space import check_space
from wsi_jax.data.features import (
    FeatureMetadata,
    is_whole,
    lost_tiles,
    read_features,
    write_features,
)
from wsi_jax.run import checks
from wsi_jax.run import run_experiment as experiment
from wsi_jax.run.config import RunError, check_claim, read_json
from wsi_jax.run.encode import Encoded
from wsi_jax.slides.tissue import Source
from wsi_jax.training.log import read_metrics

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Files that are not what they should be."""
    folder = tmp_path_factory.mktemp("slides")
    (folder / "broken.svs").write_bytes(b"II*\0 and then nothing of sense")
    Image.new("RGB", (400, 400), (243, 243, 243)).save(folder / "glass.png")
    Image.new("RGB", (400, 400), (200, 80, 160)).save(folder / "unknown.png")
    Image.new("RGB", (400, 400), (210, 80, 160)).save(folder / "coarse.png")
    return folder


BAD_SLIDES = {
    "broken.svs": ("0.5", r"broken\.svs cannot be opened as a slide; copy it again"),
    "glass.png": ("1.0", r"no tissue .*lower --config\.grid\.min_tissue"),
    "unknown.png": ("", r"unknown.*no usable um/px.*CSV's mpp column"),
    "coarse.png": ("9.0", r"coarse.*Set --config\.grid\.mpp to 9 or coarser"),
    "gone.svs": ("0.5", r"no file .*gone\.svs; mend its path"),
}


@pytest.fixture(scope="module")
def went_on(tiny, manifest, slides, tmp_path_factory):
    """A run of the practice cohort with every bad slide in it, under other names."""
    folder = tmp_path_factory.mktemp("bad")
    rows = table(manifest)
    for row in rows:
        row["path"] = str(manifest.parent / row["path"])
        row["mask_path"] = row["annotation_path"] = ""
    for i, (name, (mpp, _)) in enumerate(BAD_SLIDES.items()):
        who = {"slide_id": f"bad_{i}", "path": str(slides / name), "mpp": mpp}
        rows.append(dict(rows[i]) | who | {"cluster": "", "patient_id": f"b{i}"})
    with open(folder / "slides.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    config = tiny()
    config.data.manifest = str(folder / "slides.csv")
    config.max_refused, config.heatmaps, config.train.steps = 0.2, 0, 2
    experiment.run(config, folder / "run")
    return folder / "run"


@pytest.mark.parametrize("name", BAD_SLIDES)
def test_a_bad_slide_is_recorded_and_the_others_go_on(went_on, name):
    index = list(BAD_SLIDES).index(name)
    found = {s["slide_id"]: s for s in table(went_on / "slides.csv")}
    bad = found[f"bad_{index}"]
    assert bad["status"] == "refused"
    assert bad["reason"].startswith(f"bad_{index}: ")
    with pytest.raises(ValueError, match=BAD_SLIDES[name][1]):
        raise ValueError(bad["reason"])
    assert [s["status"] for s in found.values()].count("encoded") == 20
    assert len(table(went_on / "predictions.csv")) == 6
    page = (went_on / "report.html").read_text()
    assert f"bad_{index}" in page
    assert f"{len(BAD_SLIDES)} slides are in no number above" in page


def test_the_contact_sheet_shows_them_all(went_on):
    with Image.open(went_on / "tissue.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    framed = (pixels == (0xB8, 0x3A, 0)).all(-1)
    assert framed.any()
    outlined = (pixels == (0, 158, 115)).all(-1)
    assert outlined.any()


@pytest.fixture
def command(tiny_file, tiny, monkeypatch, tmp_path):
    """Runs a command line in this process; what it ends with, None where it is well."""

    def run(*words):
        config = tiny()
        named = {
            "--config.data.manifest": config.data.manifest,
            "--config.features": config.features,
            "--config.run_dir": tmp_path / "run",
            "--config.heatmaps": 0,
            "--config.train.steps": 4,
        }
        line = [f"{name}={value}" for name, value in named.items()]
        try:
            with config_from("--config", tiny_file, *line, *words) as config:
                cli.train_config(config, "tiny")
        except SystemExit as stop:
            return stop.code
        return None

    return run


def wrong_label(rows):
    rows[3]["label"] = "tumour"


def no_label(rows):
    rows[3]["label"] = ""


def word_for_mpp(rows):
    rows[3]["mpp"] = "40x"


def two_of_one_name(rows):
    rows[3]["slide_id"] = rows[2]["slide_id"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_label, r"line 5: label 'tumour' of slide '\w+' is not among"),
        (no_label, r"line 5: slide '\w+' has no label; add it"),
        (word_for_mpp, r"line 5: mpp '40x' is not micrometres per pixel; write 0\.25"),
        (two_of_one_name, r"line 5: slide_id '\w+' is already on line 4"),
    ],
)
def test_a_bad_manifest_stops_before_anything(
    command, edited, tmp_path, change, message
):
    rows = []
    path = edited(lambda row: rows.append(row) or row)
    change(rows)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    classes = "--config.data.classes=('normal','tumor')"
    said = command(f"--config.data.manifest={path}", classes)
    with pytest.raises(ValueError, match=rf"CohortError: .*edited\.csv, {message}"):
        raise ValueError(said)
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_for_a_manifest_says_which_command_takes_folders(command, slides):
    said = command(f"--config.data.manifest={slides}")
    assert said.startswith(f"CohortError: {slides}: a folder, not a CSV; ")
    assert "experiments.extract_features" in said


def test_a_file_for_a_folder_is_one_line(command, tmp_path):
    """As the run's, the features', or above one of them."""
    file = tmp_path / "file"
    file.write_text("in the way")
    for flag in ("run_dir", "features"):
        for path in (file, file / "below"):
            run = f"--config.run_dir={tmp_path / f'{flag}_{path.name}'}"
            said = command(run, f"--config.{flag}={path}")
            assert said.startswith(str(path))
            assert said.endswith(", and a folder is wanted; name another")
            assert len(said.splitlines()) == 1


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
        (OSError(30, "Read-only file system", "a"), "a: Read-only file system"),
    ],
)
def test_what_a_disk_refuses_names_the_file(error, message, tmp_path):
    assert cli.error_message(error, tmp_path).startswith(message)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.tissue.sauce=MASK", "did you mean --config.tissue.source?"),
        ("--config.tissue.source=MUSK", "--config.tissue.source=MUSK"),
        ("--config.grid.size_px=big", "--config.grid.size_px=big: not a whole number"),
        ("--config.grid.mpp=-1", "--config.grid.mpp=-1.0: above 0"),
        ("--config.grid.min_tissue=25", "--config.grid.min_tissue=25.0: from 0 to 1"),
        ("--config.tissue.min_area_um2=-1", "--config.tissue.min_area_um2=-1.0"),
    ],
)
def test_a_wrong_key_type_or_value_stops_before_anything(
    command, tmp_path, word, message
):
    said = command(word)
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_stops_and_nothing_is_lost(command, tiny, tmp_path):
    """Its features serve the next run; no checkpoint holds a number that is none."""
    wild = ("--config.train.optimiser.learning_rate=1e30", "--config.train.log_every=1")
    said = command(*wild, "--config.train.steps=30")
    assert said.startswith("DivergedError: step ")
    assert "is not finite; lower --config.train.optimiser.learning_rate" in said
    assert "--config.run_dir" in said
    for line in read_metrics(tmp_path / "run" / "train" / "metrics.jsonl"):
        assert np.isfinite([*line.values()]).all()
    assert not (tmp_path / "run" / "model.json").exists()
    said = command("--config.train.optimiser.learning_rate=1e-3")
    assert "train.optimiser.learning_rate: was 1e+30, is 0.001" in said
    assert said.splitlines()[-1].endswith(f"--config.features={tiny().features})")


def test_a_feature_file_cut_short_is_made_anew(
    went_on, command, tiny, tmp_path, capsys
):
    """Cut anywhere; with a note, and none of the others."""
    folder = pathlib.Path(tiny().features, tiny().tiling().folder())
    cut = {"normal_001": 0.0, "tumor_001": 0.5, "test_001": 0.999}
    before = {name: read_features(folder / f"{name}.h5") for name in cut}
    others = [path for path in folder.glob("*.h5") if path.stem not in cut]
    times = {path: path.stat().st_mtime_ns for path in others}
    for name, share in cut.items():
        data = (folder / f"{name}.h5").read_bytes()
        (folder / f"{name}.h5").write_bytes(data[: int(len(data) * share)])
    assert command() is None
    said = capsys.readouterr().err
    found = {s["slide_id"]: s for s in table(tmp_path / "run" / "slides.csv")}
    for name in cut:
        note = f"{name}.h5 was damaged and is made anew"
        assert f"note: {name}: {note}" in said
        assert (found[name]["status"], found[name]["reason"]) == ("encoded", note)
        after = read_features(folder / f"{name}.h5")
        np.testing.assert_array_equal(after.x, before[name].x)
        np.testing.assert_array_equal(after.yx, before[name].yx)
    assert said.count("note: ") == len(cut)
    assert {path: path.stat().st_mtime_ns for path in others} == times


@pytest.fixture
def extracted(tiny, edited, tmp_path):
    """Runs an edited cohort, learning next to nothing; its slides.csv."""

    def run(config, change):
        lose = lambda row: (
            row | {"path": "gone"} if row["slide_id"] == "test_006" else row
        )
        config.data.manifest = str(edited(lambda row: change(lose(row))))
        config.train.steps, config.heatmaps = 1, 0
        experiment.run(config, tmp_path / "run")
        return {s["slide_id"]: s for s in table(tmp_path / "run" / "slides.csv")}

    return run


def test_a_mended_mpp_makes_a_slides_features_anew(went_on, extracted, tiny, tmp_path):
    """And only that slide's: what was encoded at a wrong scale must not be kept."""
    config = tiny()
    config.features = shutil.copytree(config.features, tmp_path / "features").as_posix()
    (folder,) = pathlib.Path(config.features).glob("*/*")
    before = {p.stem: p.stat().st_mtime_ns for p in folder.glob("*.h5")}
    mend = lambda row: row | {"mpp": "0.6"} if row["slide_id"] == "tumor_001" else row
    extracted(config, mend)
    after = {p.stem: p.stat().st_mtime_ns for p in folder.glob("*.h5")}
    assert [n for n in after if after[n] != before[n]] == ["tumor_001"]
    with h5py.File(folder / "tumor_001.h5") as file:
        assert file["coords"].attrs["mpp"] == 0.6


def test_another_file_of_the_same_name_is_encoded_anew(extracted, tiny, tmp_path):
    """Two cohorts may share a folder of features, and a slide may be copied again."""
    config = tiny()
    config.features = str(tmp_path / "features")
    rows = {row["slide_id"]: row for row in table(config.data.manifest)}
    first = pathlib.Path(config.data.manifest).parent / rows["tumor_001"]["path"]
    other = tmp_path / "tumor_001.tif"  # of the same size in pixels, mpp and tissue
    other.write_bytes(first.read_bytes() + b"another")
    extracted(config, lambda row: row)
    (folder,) = pathlib.Path(config.features).glob("*/*")
    before = {p.stem: p.stat().st_mtime_ns for p in folder.glob("*.h5")}
    swap = lambda row: (
        row | {"path": str(other)} if row["slide_id"] == "tumor_001" else row
    )
    shutil.rmtree(tmp_path / "run")
    extracted(config, swap)
    after = {p.stem: p.stat().st_mtime_ns for p in folder.glob("*.h5")}
    assert [n for n in after if after[n] != before[n]] == ["tumor_001"]


def test_lost_tiles_are_told_again_when_features_are_used_again(tmp_path):
    origin = FeatureMetadata(
        slide_id="s", shape=(64, 64), mpp=1.0, target_mpp=1.0, size_px=32,
        overlap_px=0, encoder="e", config_hash="h", bad_tiles=2, bad_reason="torn",
    )  # fmt: skip
    nothing = np.zeros((2, 3)), np.zeros((2, 2), int)
    write_features(tmp_path / "s.h5", *nothing, origin)
    assert lost_tiles(tmp_path / "s.h5") == (2, "torn")


@pytest.mark.parametrize(("lost", "refused"), [(1, False), (2, True), (9, True)])
def test_a_slide_that_has_lost_too_much_is_refused(lost, refused):
    kept = np.arange(9 - lost)
    said = Encoded(0, np.zeros((9 - lost, 1)), kept, lost, "torn").refusal(0.2)
    assert bool(said) == refused
    if refused:
        assert "torn" in said


def test_outlines_that_are_damaged_are_noted_and_the_run_ends(
    extracted, tiny, tmp_path, capsys
):
    config = tiny()
    torn = tmp_path / "torn.xml"
    torn.write_text("<ASAP_Annotations><Anno")
    damage = lambda row: (
        row | {"annotation_path": str(torn)} if row["slide_id"] == "test_001" else row
    )
    found = extracted(config, damage)["test_001"]
    assert found["status"] == "encoded"
    assert "torn.xml" in found["reason"]
    assert "note: test_001: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"label": "normal"}, "label 'tumor' is now 'normal'"),
        ({"mpp": "0.6"}, "mpp 0.[58] is now 0.6"),
        ({"split": "train"}, "split 'test' is now 'train'"),
    ],
)
def test_a_manifest_that_has_changed_is_another_run(
    finished, tiny, edited, change, told
):
    """Neither the old report nor a training that has seen what now tests."""
    config = tiny()
    config.features = ""
    tumor = next(
        row["slide_id"]
        for row in table(config.data.manifest)
        if row["label"] == "tumor" and row["split"] == "test"
    )
    kept = config.data.manifest
    config.data.manifest = str(
        edited(lambda row: row | change if row["slide_id"] == tumor else row)
    )
    cohort, before = config.data.cohort(), finished / experiment.MANIFEST
    with pytest.raises(RunError, match=f"slide '{tumor}': {told}"):
        checks.check_unchanged(before, cohort)
    config.data.manifest = kept
    checks.check_unchanged(before, config.data.cohort())


def test_masks_are_used_only_if_asked_for(extracted, tiny, tmp_path):
    """The practice cohort's are its truth; a slide that has none is refused by name."""
    config = tiny()
    config.features = str(tmp_path / "features")
    config.tissue.source = Source.MASK
    lose = lambda row: row | {"mask_path": ""} if row["slide_id"] == "test_001" else row
    found = extracted(config, lose)
    truth = {s["slide_id"]: float(s["tissue_um2"]) for s in table(config.data.manifest)}
    reasons = {n: s["reason"] for n, s in found.items() if s["status"] == "refused"}
    assert list(reasons) == ["test_001", "test_006"]
    assert reasons["test_001"].startswith("test_001: no mask; give one in the CSV's")
    for name in truth.keys() - reasons.keys():
        area = float(found[name]["tissue_mm2"]) * 1e6
        assert area == pytest.approx(truth[name], rel=0.05)


@pytest.fixture
def disk(tmp_path):
    """A disk of its own; disk(kib) makes or resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(kib):
        again = ["-o", "remount"] if os.path.ismount(folder) else ["-t", "tmpfs"]
        options = [*again, "-o", f"size={kib}k", "tmpfs", str(folder)]
        done = subprocess.run(["mount", *options], capture_output=True)
        if done.returncode:
            pytest.skip("only root may mount a small disk")
        return folder

    yield sized
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder, leave_kib):
    """Leaves so much room; none at all where others take what seemed free."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with contextlib.suppress(OSError):
        (folder / "ballast").write_bytes(bytes(free - 1024 * leave_kib))


METADATA = FeatureMetadata(
    slide_id="a", shape=(100, 100), mpp=0.5, target_mpp=0.5, size_px=32, overlap_px=0,
    encoder="resnet18", config_hash="c", bad_tiles=0,
)  # fmt: skip


def test_features_that_do_not_fit_are_said_before_they_are_made(disk, command):
    folder = disk(4)
    said = command(f"--config.features={folder / 'features'}")
    assert said.startswith(f"FeatureError: {folder}/features/")
    assert "tiles take" in said
    assert "name another folder with --config.features" in said
    assert not list(folder.rglob("*.h5"))


def test_a_disk_that_fills_up_while_features_are_written(disk):
    """What was there stays, no half file does, and the error has the file's name."""
    folder = disk(256)
    x, yx = np.ones((500, 64), np.float32), np.zeros((500, 2), np.int64)
    write_features(folder / "a.h5", x, yx, METADATA)
    fill(folder, 16)
    for name in ("a.h5", "b.h5"):
        with pytest.raises(OSError, match=rf"{name}'$") as caught:
            write_features(folder / name, x, yx, METADATA)
        assert "no space left on its disk" in cli.error_message(caught.value, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["a.h5", "ballast"]
    assert is_whole(folder / "a.h5", "c")


def test_a_disk_that_is_full_stops_a_run_that_then_goes_on(disk, command):
    """Full before the first slide, then while training; both times nothing is lost."""
    plan = ("--config.train.steps=30", "--config.train.patience=0")
    folder = disk(4_000)
    run, state = folder / "run", folder / "run" / "train" / "state"

    def stops():
        """The run finds the disk full, and says so."""
        said = command(f"--config.run_dir={run}", *plan)
        (folder / "ballast").unlink()
        assert str(run) in said
        assert "no space left on its disk. Free some and give the same" in said
        assert len(said.splitlines()) == 1
        assert not (run / "report.html").exists()

    def fill_after_a_checkpoint():
        while not any(path.name.isdigit() for path in state.glob("*")):
            time.sleep(1e-3)
        fill(folder, 0)

    fill(folder, 8)
    stops()
    filling = threading.Thread(target=fill_after_a_checkpoint, daemon=True)
    filling.start()
    stops()
    filling.join()
    assert list(state.iterdir())  # to go on from
    # A disk that fills up within a write leaves the half of it, until a run goes on.
    half = state / "25.orbax-checkpoint-tmp"
    half.mkdir(exist_ok=True)
    (half / "cut").write_text("short")
    log = run / "train" / "metrics.jsonl"
    first, *rest = read_metrics(log)
    marked = [first | {"mark": 1}, *rest]  # stays only if the run goes on
    log.write_text("".join(json.dumps(line) + "\n" for line in marked))
    assert command(f"--config.run_dir={run}", *plan) is None
    assert not [*folder.rglob("*.orbax-checkpoint-tmp")]
    lines = read_metrics(log)
    assert lines[0]["mark"] == 1
    steps = [line["step"] for line in lines if "train.loss" in line]
    assert steps == [5, 10, 15, 20, 25, 30]
    assert len(table(run / "predictions.csv")) == 6


def test_a_file_the_system_refuses_to_grow(tiny_file, manifest, tmp_path):
    """A quota, where no disk can be mounted: the process ends with one line."""
    limited = (
        "import resource, runpy; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384)); "
        "runpy.run_module('experiments.cohort', run_name='__main__')"
    )
    config = ["--config", str(tiny_file), f"--config.data.manifest={manifest}"]
    words = [*config, f"--config.run_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-c", limited, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("it goes on from where it was")
    assert "Traceback" not in done.stderr


def test_room_is_asked_of_the_disk_that_will_hold_the_files(tmp_path):
    check_space(tmp_path / "not" / "yet" / "there", 1000, 512)
    with pytest.raises(ValueError, match=r"there: the features of 10+ tiles take"):
        check_space(tmp_path / "not" / "there", 10**13, 512)
