"""The `wsi-jax` command: what it lists and shows, and what it refuses."""

import pathlib
import subprocess
import sys

import pytest

from wsi_jax import config_fields, configs
from wsi_jax.cli import app
from wsi_jax.commands import listing
from wsi_jax.commands.field_names import check_names
from wsi_jax.data.tile_batches import Reading
from wsi_jax.run.config_file import read_config, run_name

COMMAND = "from wsi_jax.cli import app; app(prog_name='wsi-jax')"
# Hundreds of milliseconds each: help and refusals go without.
HEAVY = {"jax", "tensorflow", "scipy", "matplotlib", "optax", "flax", "openslide"}


def process(*words, code=COMMAND):
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def run(capsys):
    """Runs a command in this process; gives what it prints, or its refusal."""

    def command(*words):
        with pytest.raises(SystemExit) as stop:
            app([*map(str, words)], prog_name="wsi-jax")
        if stop.value.code:
            return stop.value.code
        return capsys.readouterr().out

    return command


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        *([name, "--help"] for name in ("train", "predict", "show")),
        ["list"],
        ["train", "--metod", "x"],
        ["predict", "--rnu", "x"],
        ["train", "--method", "abmil", "--config.train.stepz=1"],
    ],
    ids=" ".join,
)
def test_help_lists_and_refusals_import_nothing_heavy(words):
    names = "print(*{name.partition('.')[0] for name in sys.modules})"
    code = f"import atexit, sys; atexit.register(lambda: {names}); {COMMAND}"
    done = process(*words, code=code)
    assert not HEAVY & {*done.stdout.splitlines()[-1].split()}


def test_every_method_is_listed_with_its_variants(run):
    listed = run("list", "methods")
    assert {*configs.methods()} <= {*listed.split()}
    assert ":paper" in listed
    assert "Variants" not in listed.partition("  quick")[2].partition("  sasha")[0]


def test_variants_that_are_listed_make_configs():
    for name in configs.methods():
        for variant in configs.variants(name):
            variant = "uni" if variant == configs.ENCODER else variant
            read_config(configs.config_path(f"{name}:{variant}"), "Experiment")


def test_encoders_are_listed_with_what_their_weights_ask_for(run):
    lines = " ".join(run("list", "encoders").split())
    assert "uni2_h UNI2-h; huggingface.co/MahmoodLab/UNI2-h; gated: asks for" in lines
    assert "phikon_v2 Phikon-v2 (Filiot et al. 2024); huggingface.co/owkin" in lines


def test_configs_are_listed_in_a_checkout_only(run, monkeypatch, tmp_path):
    assert "phantom/sasha" in run("list")
    monkeypatch.chdir(tmp_path)
    assert "phantom/sasha" not in run("list")
    assert "no experiments/configs here" in run("list", "configs")


def test_show_prints_flags_that_make_the_same_config(run):
    shown = run("show", "sasha:paper")
    config = read_config(configs.config_path("sasha:paper"), "Experiment")
    for row in config_fields.describe(config):
        assert f"{row.path}=" in shown or f"{row.path} (" in shown, row.path
    assert "--config.method.policy.optimiser.schedule=constant\n" in shown
    assert "      (cosine | constant) learning rate after the warm-up." in shown
    assert "--config.tissue.saturation='(0.05, 0.15)'" in shown


def test_show_narrows_to_a_part(run):
    part = run("show", "abmil", "train.optimiser")
    assert "--config.train.optimiser.warmup=" in part
    assert "--config.train.steps=" not in part
    assert "train.steps=" in run("show", "abmil", "--config.train.steps"[2:])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sasha:paper", "wsi_jax/configs/sasha.py:paper"),
        ("cohort/sasha", "wsi_jax/configs/sasha.py"),
        ("phantom/sasha", "experiments/configs/phantom/sasha.py"),
        ("tcga_prad:x", "experiments/configs/tcga_prad.py:x"),
        ("mine/config.py:x", "mine/config.py:x"),
    ],
)
def test_configs_are_found_by_name_or_by_path(name, file):
    assert listing.config_file(name).endswith(file)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "trian: no such command; did you mean train?"),
        (["train", "--metod=x"], "--metod: no such flag; did you mean --method?"),
        (["train"], "no method; add --method NAME"),
        (["train", "--method=x", "--config=y"], "name a config each; leave one out"),
        (["train", "--method", "abml:uni"], "did you mean abmil?"),
        (["predict", "--rnu", "x"], "--rnu: no such flag; did you mean --run?"),
        (["predict", "--run"], "--run: give it a value"),
        (["predict", "a.svs", "--out=o"], "--run is missing: folder of a trained"),
        (["predict", "--together=x"], "--together: not a whole number; write one, as"),
        (["list", "method"], "KIND: 'method' is not one of 'methods', 'encoders'"),
        (["show", "abmill"], "no config 'abmill'; did you mean abmil?"),
        (["show", "abmil", "train.stepz"], "'train.stepz'; did you mean train.steps?"),
        (["show", "gone.py"], "--config=gone.py: no such file"),
        (["migrate", "gone", "--out", "m"], "gone"),
        (
            ["check-encoder", "unii", "--weights=x"],
            "'unii' is known; did you mean uni",
        ),
        (["import", "--form", "x"], "--form: no such flag; did you mean --from?"),
    ],
)
def test_a_wrong_word_is_one_line(run, words, message):
    refusal = run(*words)
    assert message in refusal
    assert len(refusal.splitlines()) == 1


def test_a_refusal_is_all_that_is_printed():
    done = process("train", "--method", "abmil", "--config.trian.steps=3")
    line = "--config.trian.steps: no such field; did you mean --config.train.steps?"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line + "\n")


def test_a_method_and_a_manifest_stand_for_a_config_and_its_field(tmp_path):
    words = "--method", "quick", "--manifest", str(tmp_path / "gone.csv")
    run_dir = f"--config.run_dir={tmp_path}/run"  # whatever lies in runs/
    done = process("train", *words, run_dir, "--config.train.steps=3")
    assert done.returncode == 1
    assert done.stderr.startswith(f"CohortError: {tmp_path}/gone.csv: no such manifest")


OWN = """
import dataclasses
from wsi_jax.configs import quick
from wsi_jax.methods.mil import ABMIL

@dataclasses.dataclass(kw_only=True)
class Mine(ABMIL):
    '''Mine.'''

def get_config():
    config = quick.get_config()
    config.method = Mine(width=64)
    return config

def other():
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a module of one's own, whence the command is given."""
    (tmp_path / "my_own_method.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_own_method", None)
    config_fields.PACKAGES.discard("my_own_method")


def test_a_method_of_ones_own_is_found_by_its_import_path(own):
    for name, width in {"get_config": 64, "Mine": 512}.items():
        file = configs.config_path(f"my_own_method:{name}")
        assert run_name(file) == f"my_own_method_{name}"
        config = read_config(file, "Experiment")
        assert type(config.method).__name__ == "Mine"
        assert (config.method.width, config.encoder.stages) == (width, 3)
        plain = config_fields.to_plain(config.method)
        assert config_fields.from_plain(plain) == config.method


def test_it_is_trained_by_that_path(own):
    """From the folder of the command, as `python -m` would find it."""
    words = "--method=my_own_method:get_config", "--manifest=gone.csv"
    done = process("train", *words, "--config.method.width=32")
    assert done.stderr.startswith("CohortError: gone.csv: no such manifest")


def test_a_run_of_a_method_of_ones_own_is_opened_once_it_is_trusted(own):
    plain = {"type": "my_own_method.Mine"}
    with pytest.raises(ValueError, match="add --trust my_own_method"):
        config_fields.from_plain(plain)
    config_fields.PACKAGES.add("my_own_method")
    assert type(config_fields.from_plain(plain)).__name__ == "Mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_own_method:Mien", "has no 'Mien'; did you mean Mine?"),
        ("my_own_method:other", "neither a function that returns an Experiment nor"),
        ("my_own.gone:get", "my_own.gone does not import (ModuleNotFoundError"),
    ],
)
def test_what_is_no_method_of_ones_own_is_one_line(run, own, name, message):
    refusal = run("train", "--method", name)
    assert refusal.startswith(f"--method={name}: ")
    assert message in refusal
    assert len(refusal.splitlines()) == 1


def test_the_default_that_help_shows_is_that_of_the_reader(run):
    assert f"({Reading.max_unreadable:g})" in run("predict", "--help")


def test_the_script_of_the_wheel_is_this_command():
    text = (pathlib.Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert 'wsi-jax = "wsi_jax.cli:app"' in text


def test_no_field_of_a_config_is_refused_by_its_name():
    for name in configs.methods():
        for variant in ("", *configs.variants(name)):
            variant = "uni" if variant == configs.ENCODER else variant
            file = configs.config_path(f"{name}:{variant}" if variant else name)
            fields = config_fields.describe(read_config(file, "Experiment"))
            check_names(file, [field.path for field in fields])
            with pytest.raises(SystemExit, match=r"mean --config\.train\.steps\?"):
                check_names(file, ["train.stepz"])
