"""What is typed wrong stops the run with one line that says how to type it."""

import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file
from words import config_from

from wsi_jax import configs
from wsi_jax.commands import config_command_line
from wsi_jax.nets.conv_encoder import Depth
from wsi_jax.nets.vit_encoder import Output
from wsi_jax.run.run_folder import RunError


@pytest.fixture
def read(tiny_file):
    """The config that words on a command line make, or what `then` does with it."""

    def from_words(*words, file=tiny_file, then=lambda config: config, **kwargs):
        words = [*(("--config", file) if file else ()), *words]
        with config_from(*words, **kwargs) as config:
            return then(config)

    return from_words


def train(config):
    config_command_line.run_training(config, "tiny")


def test_every_kind_of_field_can_be_set(read):
    words = [
        "--config.train.steps=7",
        "--config.grid.mpp=0.25",
        "--config.train.optimiser.learning_rate",
        "1e-3",
        "--config.encoder.depth=resnet50",
        "--noconfig.train.class_weights",
        "--config.loading.max_tiles=100",
        "--config.data.mpp=0.5",
        "--config.data.classes=('tumor','normal')",
        "--config.data.manifest=my slides.csv",
    ]
    config = read(*words)
    assert config.train.steps == 7
    assert config.grid.mpp == 0.25
    assert config.train.optimiser.learning_rate == 1e-3
    assert config.encoder.depth is Depth.resnet50
    assert config.train.class_weights is False
    assert config.loading.max_tiles == 100
    assert config.data.mpp == 0.5
    assert config.data.classes == ("tumor", "normal")
    assert config.data.manifest == "my slides.csv"


def test_what_is_not_set_stays_as_in_the_file(read):
    assert read().train.steps == 30


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.train.stepz=3", "did you mean --config.train.steps?"),
        ("--config.steps=3", "did you mean --config.train.steps?"),
        ("--config.learning_rate=3", "--config.train.optimiser.learning_rate?"),
        ("--noconfig.train.balancd", "did you mean --config.train.balanced?"),
        ("--config.grid.heads=3", "one of mpp, size_px, overlap_px, min_tissue?"),
        ("--config.mppp=3", "did you mean --config.mpp?"),
        ("--config.qqq=3", "no such field; `wsi-jax show METHOD` prints all"),
        ("--config.train.steps=many", "--config.train.steps=many: not a whole number"),
        ("--config.grid.mpp=fine", "--config.grid.mpp=fine: not a number; write one"),
        ("--config.grid.mpp=nan", "--config.grid.mpp=nan: not a finite number"),
        ("--config.method=abmil", "an ABMIL is exchanged in the config file; set its"),
        ("--config.encoder.depth=resnet19", "resnet18|resnet34|resnet50"),
        ("--config.train.class_weights=maybe", "--config.train.class_weights=maybe"),
        ("--confg.train.steps=3", "confg.train.steps"),
        ("config.train.steps=3", "config.train.steps=3: not a flag"),
    ],
)
def test_a_wrong_word_is_one_line(read, word, message):
    with pytest.raises(SystemExit) as caught:
        read(word)
    assert message in caught.value.code
    assert len(caught.value.code.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no function get_config() in it; write one that returns an Experiment"),
        ("def get_config(:", "line 1: SyntaxError: invalid syntax"),
        ("\nimport nowhere", "line 2: ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config():\n    1 / 0", "line 2: ZeroDivisionError: division"),
        ("def get_config(a, b): ...", "TypeError: get_config() missing 2 required"),
        ("def get_config(): ...", "get_config() returns None, and this command takes"),
    ],
)
def test_a_config_file_that_makes_none_is_one_line(read, tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        read("--config.train.steps=3", file=file)
    assert caught.value.code.startswith(f"--config={file}: ")
    assert message in caught.value.code
    assert len(caught.value.code.splitlines()) == 1


METHOD = "ABMIL(width=8, attention=4, standardise=True)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (METHOD, "'abmil'", "--config.method='abmil': give an object in the config f"),
        (METHOD, "ABMIL", "--config.method=<class 'wsi_jax.methods.mil.ABMIL'>: give"),
        ("data=Manifest()", "data='my.csv'", "--config.data='my.csv': give an object"),
        ("encoder=Encoder(", "encoder=dict(", "--config.encoder={'stages': 1, 'width'"),
        ("steps=30", "steps=True", "--config.train.steps=True: not a whole number"),
    ],
)
def test_a_field_of_another_type_in_the_file_is_one_line(
    read, tiny_file, tmp_path, old, new, message
):
    file, text = tmp_path / "mine.py", tiny_file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(SystemExit) as caught:
        read(file=file, then=train)
    assert message in caught.value.code
    assert len(caught.value.code.splitlines()) == 1


def test_a_config_of_another_command_names_that(read):
    practice = "experiments/configs/practice.py"
    with pytest.raises(SystemExit, match=r"a MakeCohort, .*\.phantoms\.make_cohort$"):
        read(file=practice)
    with pytest.raises(SystemExit, match=r"an Experiment, .* experiments\.cohort$"):
        read(kind="MakeCohort")
    read(file=practice, kind="MakeCohort")


def test_a_missing_file_names_its_neighbour(read, tiny_file):
    with pytest.raises(SystemExit) as caught:
        read(file=tiny_file.with_name("tny.py"))
    assert caught.value.code.endswith(f"no such file; did you mean {tiny_file}?")


def test_no_file_says_how_to_name_one(read):
    with pytest.raises(SystemExit, match="add --config FILE"):
        read(file=None)


def test_the_process_ends_with_that_line(tiny_file):
    """No traceback, and an exit status that scripts see."""
    words = ["--config", str(tiny_file), "--config.train.stepz=3"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cohort", *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    line = "--config.train.stepz: no such field; did you mean --config.train.steps?"
    assert done.stderr == line + "\n"


@pytest.mark.parametrize("name", ["cohort", "phantoms.make_cohort", "phantoms.certify"])
def test_help_is_printed_and_no_fault(name):
    command = [sys.executable, "-m", f"experiments.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--co" in done.stdout


def test_an_encoder_is_chosen_by_name_and_wants_its_file_and_its_patches(
    read, tmp_path
):
    words = ["--config.encoder.dtype=bfloat16"]
    config = read(*words, file=configs.config_path("abmil:virchow2"))
    assert config.encoder.output is Output.class_and_mean
    assert (config.grid.mpp, config.grid.size_px) == (0.5, 224)
    with pytest.raises(
        RunError, match=r"encoder\.weights=virchow2\.safetensors: no such"
    ):
        config.validate()
    path = tmp_path / "mine.safetensors"
    save_file({"x": np.zeros(1)}, path)
    words += [f"--config.encoder.weights={path}"]
    read(*words, file=configs.config_path("abmil:virchow2")).validate()
    words += ["--config.grid.size_px=256"]
    config = read(*words, file=configs.config_path("abmil:virchow2"))
    with pytest.raises(RunError, match=r"size_px=256 .* 14 px; make it 252 or 266"):
        config.validate()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("abmil:virchov2", r"'virchov2' .*did you mean virchow2"),
        ("sasha:papr", r"no 'papr' among ours, paper, quick; did you mean paper\?$"),
    ],
)
def test_an_unknown_variant_is_refused_with_those_there_are(read, name, message):
    with pytest.raises(SystemExit, match=message):
        read(file=configs.config_path(name))


def test_a_flag_that_there_is_not_is_refused_before_the_config_is_read(read):
    """What is like a field is taken for one."""
    for word, message in {
        "--confgi=mine.py": "did you mean --config?",
        "--train.steps=3": "did you mean --config.train.steps?",
        "--qqq": "--qqq: no such flag; there are --config",
    }.items():
        with pytest.raises(SystemExit, match=re.escape(message)):
            read(word, file="nowhere.py")
