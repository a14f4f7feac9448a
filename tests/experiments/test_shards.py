"""Extraction by the tasks of a job array: together, killed, twice, and their status."""

import csv
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest
from run_files import read_json, table, times
from words import config_from

from wsi_jax.commands.config_command_line import run_extraction, run_status
from wsi_jax.run.extract.shard import read_shard
from wsi_jax.run.run_folder import RunError

SLIDES, GONE = 20, 3
TASK = "SLURM_ARRAY_TASK_"


@pytest.fixture(scope="module")
def slides(manifest, tmp_path_factory):
    """A manifest of which one slide is not there; its slides can be taken away."""
    folder = tmp_path_factory.mktemp("slides")
    lines = [
        (line["slide_id"], manifest.parent / line["path"]) for line in table(manifest)
    ]
    with open(folder / "slides.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "path"])
        writer.writerows((name, f"all/{name}.tif") for name, _ in lines)
    (folder / "all").mkdir()
    for i, (name, path) in enumerate(lines):
        if i != GONE:
            (folder / "all" / f"{name}.tif").symlink_to(path)
    return folder / "slides.csv"


@pytest.fixture(scope="module")
def words(tiny_file, slides):
    """Words of the extraction: of small batches, that take a while."""
    fields = "reading.threads=1", "encode_batch=8", "grid.size_px=16", "data.mpp=0.5"
    return (
        *("--config", str(tiny_file), f"--config.data.manifest={slides}"),
        *(f"--config.{field}" for field in fields),
    )


@pytest.fixture(scope="module")
def extract(words):
    """Makes features in this process; gives its exit code."""

    def run(folder, *more, main=run_extraction, **options):
        try:
            with config_from(*words, f"--config.run_dir={folder}", *more) as config:
                main(config, "tiny", **options)
        except SystemExit as stop:
            return stop.code
        return 0

    return run


@pytest.fixture(scope="module")
def whole(extract, tmp_path_factory):
    """The run of all slides by one process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert extract(folder) == 0
    assert len(features(folder)) == SLIDES - 1
    return folder


@pytest.fixture
def status(extract, capsys):
    """Exit code of the status, and what it prints."""

    def run(folder, *more):
        options = {"main": run_status, "command": "THIS COMMAND"}
        capsys.readouterr()
        code = extract(folder, *more, **options)
        return code, capsys.readouterr().out.splitlines()

    return run


def features(folder):
    """{name: bytes} of all that is in the folder of features."""
    below = folder / "features"
    files = filter(pathlib.Path.is_file, below.rglob("*"))
    return {str(path.relative_to(below)): path.read_bytes() for path in files}


def records(folder):
    """The files that tell of shards: {name of the shard: path}."""
    paths = (folder / "shards").rglob("slides.csv")
    return {path.parent.name: path for path in paths}


def test_shards_make_what_one_run_makes_file_for_file(extract, whole, tmp_path):
    for i in (2, 0, 1):
        assert extract(tmp_path, f"--config.shard={i}/3") == 0
        assert len(records(tmp_path)) == (2, 3, 1)[i]
    assert features(tmp_path) == features(whole)
    written = {
        line["slide_id"]: line
        for path in records(tmp_path).values()
        for line in table(path)
    }
    lines = table(whole / "slides.csv")
    assert [written[line["slide_id"]] for line in lines] == lines
    costs = [
        read_json(path.with_name("cost.json")) for path in records(tmp_path).values()
    ]
    for name in ("slides", "tiles", "bytes_decoded", "flops"):
        assert sum(cost[name] for cost in costs) == read_json(whole / "cost.json")[name]


def test_a_shard_without_slides_or_with_refused_ones_only_has_done_its_part(
    extract, tmp_path, capsys
):
    assert extract(tmp_path, f"--config.shard={SLIDES}/{SLIDES + 1}") == 0
    assert not records(tmp_path)
    assert extract(tmp_path, f"--config.shard={GONE}/{SLIDES}") == 0
    ((only,),) = map(table, records(tmp_path).values())
    assert (only["status"], only["tiles"]) == ("refused", "0")
    assert "0 of 1 slides of the shard have features" in capsys.readouterr().out


def test_the_status_before_between_and_after(extract, status, slides, tmp_path):
    """Of files and records alone: the slides may be away by then."""
    shard = "--config.shard=auto/3"  # of whatever task: the status is of all
    names = [line["slide_id"] for line in table(slides)]
    code, (counts, missing, command) = status(tmp_path, shard)
    assert code == 1
    assert counts == "20 slides: 0 done, 20 missing, 0 refused, 0 damaged"
    assert missing == f"missing: {', '.join(names[:5])} and 15 more"
    assert command == "to go on: THIS COMMAND"

    extract(tmp_path, "--config.shard=0/3")
    code, (counts, refused, _, left, _) = status(tmp_path, shard)
    assert code == 1
    assert counts == "20 slides: 6 done, 13 missing, 1 refused, 0 damaged"
    assert refused.startswith(f"refused: {names[GONE]}: no file ")
    assert left == "shards with slides left, of 3: 1,2"

    extract(tmp_path, "--config.shard=1/3")
    extract(tmp_path, "--config.shard=2/3")
    one = next((tmp_path / "features").rglob(f"{names[7]}.h5"))
    one.write_bytes(one.read_bytes()[:-10])
    away = slides.with_name("all").rename(slides.with_name("away"))
    try:
        code, (counts, _, damaged, left, _) = status(tmp_path, shard)
        assert code == 1
        assert counts == "20 slides: 18 done, 0 missing, 1 refused, 1 damaged"
        assert damaged.startswith(f"damaged: {names[7]}: {one}: truncated or not HDF5")
        assert left == "shards with slides left, of 3: 1"
    finally:
        away.rename(slides.with_name("all"))

    extract(tmp_path, "--config.shard=1/3")
    code, (counts, _) = status(tmp_path)
    assert code == 0
    assert counts == "20 slides: 19 done, 0 missing, 1 refused, 0 damaged"
    code, (counts, *_) = status(tmp_path, "--config.grid.size_px=32")
    assert (code, counts.partition(",")[0]) == (1, "20 slides: 0 done")


def test_the_status_of_a_run_without_shards(status, whole):
    code, (counts, refused) = status(whole)
    assert (code, counts) == (0, "20 slides: 19 done, 0 missing, 1 refused, 0 damaged")
    assert "no file" in refused


@pytest.fixture
def task(start, words, tmp_path):
    """Starts the task of a job array in a process of its own: shard 1 of 2."""
    array = {"ID": "1", "MIN": "1", "MAX": "2", "COUNT": "2"}
    environ = {TASK + name: value for name, value in array.items()}
    command = "experiments.extract_features", *words, "--config.shard=auto"
    return lambda: start(*command, f"--config.run_dir={tmp_path}", **environ)


def test_a_shard_that_is_killed_goes_on(task, extract, words, whole, tmp_path):
    process = task()
    while not features(tmp_path):
        assert process.poll() is None, process.log.read_text()
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not records(tmp_path)
    before = times((tmp_path / "features").rglob("*.h5"))

    run_dir = f"--config.run_dir={tmp_path}"
    command = [sys.executable, "-c", "from wsi_jax.cli import app; app()", "extract"]
    command += [*words, "--status", run_dir]
    done = subprocess.run(command, capture_output=True, text=True)
    counts, *_, left, to_go_on = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    assert counts.startswith(f"20 slides: {len(before)} done, {20 - len(before)} mis")
    assert left == "shards with slides left, of 2: 0,1"
    again = ["wsi-jax", "extract", *words, run_dir]
    assert to_go_on == f"to go on: {shlex.join(again)}"

    for i in range(2):
        assert extract(tmp_path, f"--config.shard={i}/2") == 0
    assert features(tmp_path) == features(whole)  # and nothing that the kill has left
    assert times(before) == before
    assert set(records(tmp_path)) == {"0_of_2", "1_of_2"}
    cost = read_json(records(tmp_path)["1_of_2"].with_name("cost.json"))
    assert cost["slides"] == len(table(records(tmp_path)["1_of_2"])) - 1


@pytest.mark.long
def test_a_shard_may_be_run_twice_at_once(task, whole, tmp_path):
    one, twin = task(), task()
    for process in (one, twin):
        assert process.wait() == 0, process.log.read_text()
    expected = features(whole)
    made = features(tmp_path)
    assert made.items() <= expected.items()
    (record,) = records(tmp_path).values()
    assert len(table(record)) == SLIDES // 2
    assert len(made) == SLIDES // 2 - 1


@pytest.mark.parametrize(
    ("text", "environ", "shard"),
    [
        ("0/1", {}, (0, 1)),
        ("7/8", {TASK + "ID": "1"}, (7, 8)),
        ("auto", {TASK + "ID": "0", TASK + "MIN": "0", TASK + "MAX": "3"}, (0, 4)),
        ("auto", {TASK + "ID": "4", TASK + "MIN": "1", TASK + "MAX": "4"}, (0, 4)),
        ("auto/9", {TASK + "ID": "7", TASK + "MIN": "3", TASK + "MAX": "7"}, (7, 9)),
        ("auto/8", {"JOB_COMPLETION_INDEX": "5"}, (5, 8)),
    ],
)
def test_a_task_knows_its_shard(text, environ, shard, array):
    array({TASK + "COUNT": "4"} | environ)
    assert read_shard(text) == shard


@pytest.fixture
def array(monkeypatch):
    """Sets the environment to that of a task."""

    def set_all(environ):
        for name in ("ID", "MIN", "MAX", "COUNT"):
            monkeypatch.delenv(TASK + name, raising=False)
        monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    "text", ["3/2", "2/2", "x", "1/0", "1", "-1/2", "/2", "auto/0"]
)
def test_what_is_no_shard_is_one_line(text, extract, tmp_path):
    message = extract(tmp_path / "run", f"--config.shard={text}")
    assert message == (
        f"RunError: --config.shard={text}: write i/n, where i counts from 0 to n-1, as "
        "0/8; in a job array auto, or auto/n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"),
        ({"JOB_COMPLETION_INDEX": "0"}, "write auto/n, with that number"),
        (
            {
                TASK + "ID": "3",
                TASK + "MIN": "3",
                TASK + "MAX": "7",
                TASK + "COUNT": "2",
            },
            "write auto/n, with that number",
        ),
    ],
)
def test_a_task_that_does_not_know_its_shard_is_refused(environ, message, array):
    array(environ)
    with pytest.raises(RunError, match=message):
        read_shard("auto")


def test_a_training_has_no_shards(command):
    message = command("--config.shard=0/2")
    assert message == (
        "RunError: --config.shard=0/2: a run trains on all slides; leave it out here, "
        "and give it to `wsi-jax extract`"
    )
