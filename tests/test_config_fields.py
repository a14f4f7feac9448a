"""Configs as JSON and back: nothing lost, nothing foreign let in."""

import dataclasses
import inspect
import json
import math
import pathlib
import re
import runpy
import sys

import pytest
from words import with_field

from experiments.configs import demo
from wsi_jax import config_fields
from wsi_jax.configs import abmil, clam_mb, quick, sasha
from wsi_jax.methods import mil
from wsi_jax.run import config_file
from wsi_jax.slides.grid import Grid


@pytest.mark.parametrize("get_config", [quick.get_config, clam_mb.get_config])
def test_json_and_back_is_the_same_config(get_config):
    config = get_config()
    plain = json.loads(json.dumps(config_fields.to_plain(config)))
    back = config_fields.from_plain(plain)
    assert back == config
    assert type(back.method) is type(config.method)
    assert config_fields.to_plain(back) == plain
    assert config_fields.differences(plain, config_fields.to_plain(config)) == []


def test_differences_name_fields_and_both_values():
    before, now = demo.get_config(), demo.get_config()
    now.train.optimiser.learning_rate = 0.5
    now.encoder.stages = 2
    now.data.practice.preset = type(now.data.practice.preset).THREE
    assert config_fields.differences(*map(config_fields.to_plain, (before, now))) == [
        "data.practice.preset: was 'PLAIN', is 'THREE'",
        "encoder.stages: was 3, is 2",
        "train.optimiser.learning_rate: was 0.001, is 0.5",
    ]


def test_another_method_with_the_same_fields_is_a_difference():
    before, now = abmil.get_config(), abmil.get_config()
    before.method, now.method = mil.Mean(), mil.Max()
    assert config_fields.differences(*map(config_fields.to_plain, (before, now))) == [
        "method (type): was 'Mean', is 'Max'"
    ]


def test_a_field_of_one_side_only_is_a_difference():
    plain = config_fields.to_plain(Grid())
    older = {name: v for name, v in plain.items() if name != "overlap_px"}
    assert config_fields.differences(older, plain) == [
        "overlap_px: was '(absent)', is 0"
    ]


def test_a_run_of_before_goes_on_with_fields_that_are_new():
    """At their defaults, however deep; one that is set to another value is reported."""
    config = demo.get_config()
    now = config_fields.to_plain(config)
    before = json.loads(json.dumps(now))
    del before["grid"]["overlap_px"], before["train"]["optimiser"]["schedule"]
    del before["method"]["normaliser"], before["loading"]
    assert config_fields.differences(config_fields.with_defaults(before), now) == []
    config.grid.overlap_px = 3
    (line,) = config_fields.differences(
        config_fields.with_defaults(before), config_fields.to_plain(config)
    )
    assert line == "grid.overlap_px: was 0, is 3"


def test_what_is_no_type_of_ours_any_more_stays_as_it_is():
    plain = {"method": {"type": "wsi_jax.methods.gone.Gone", "width": 3}}
    assert config_fields.with_defaults(
        plain | {"type": "wsi_jax.slides.grid.Grit"}
    ) == (plain | {"type": "wsi_jax.slides.grid.Grit"})


def test_a_package_that_is_missing_is_named(monkeypatch):
    """Its absence is not taken for that of a config."""
    monkeypatch.delitem(sys.modules, "wsi_jax.methods.mil")
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ModuleNotFoundError, match="optax"):
        config_fields.from_plain({"type": "wsi_jax.methods.mil.ABMIL"})


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "wsi_jax.config_fields.to_plain",
        "wsi_jax.run.predict.predictor.Predictor",
        "wsi_jax.slides.grid.Grit",
        "experimental.Config",
        "experiments.camelyon16.Camelyon16",
    ],
)
def test_what_is_no_config_of_ours_is_refused(name):
    with pytest.raises(ValueError, match=name):
        config_fields.from_plain({"type": name, "args": "true"})


def test_validate_asks_the_inmost_first():
    asked = []

    @dataclasses.dataclass
    class Inner:
        name: str

        def validate(self):
            asked.append(self.name)

    @dataclasses.dataclass
    class Outer:
        a: Inner
        b: Inner
        c: int = 0

        def validate(self):
            asked.append("outer")

    config_fields.validate(Outer(Inner("a"), Inner("b")))
    assert asked == ["a", "b", "outer"]


def test_fields_have_the_names_of_the_command_at_hand():
    message = "a: set --config.data.mpp, or --config.grid.mpp=0.5: see --config.b.c."
    renamed = config_file.rename_fields(
        message, {"data.mpp": "--mpp", "b.c": "predict(c)"}
    )
    settled = "grid.mpp=0.5 (settled when the run was trained)"
    assert renamed == f"a: set --mpp, or {settled}: see predict(c)."


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.steps", 0, "--config.train.steps=0: 1 or more"),
        ("grid", {"mpp": 1.0}, "--config.grid={'mpp': 1.0}: not Grid(...) in the conf"),
        ("train.steps", "many", "--config.train.steps='many': not a whole number"),
        ("grid.mpp", -1.0, "--config.grid.mpp=-1.0: above 0"),
        ("grid.min_tissue", 25.0, "--config.grid.min_tissue=25.0: from 0 to 1"),
        ("tissue.min_area_um2", -1.0, "--config.tissue.min_area_um2=-1.0: 0 or more"),
        ("train.seed", 2**32, "--config.train.seed=4294967296: from 0 to 4294967295"),
        ("train.optimiser.learning_rate", math.nan, "=nan: not a finite number"),
        ("train.optimiser.learning_rate", -1e-4, "learning_rate=-0.0001: 0 or more"),
        ("train.optimiser.warmup", 3, "optimiser.warmup=3: from 0 to 1"),
        ("train.optimiser.accumulate", 500, "=500: no update is made in 400 steps"),
        ("reading.threads", 0, "--config.reading.threads=0: 1 or more"),
        ("loading.max_tiles", 0, "--config.loading.max_tiles=0: 1 or more"),
        ("encoder.stages", 5, "--config.encoder.stages=5: from 1 to 4"),
        ("method.attention", -1, "--config.method.attention=-1: 1 or more"),
        ("method.dropout", 1.5, "--config.method.dropout=1.5: from 0 to 1"),
        ("max_refused", 2, "--config.max_refused=2: from 0 to 1"),
        ("heatmaps", -1, "--config.heatmaps=-1: 0 or more"),
        ("tissue.saturation", (0.1,), "saturation=(0.1,): not several in brackets"),
        ("encoder.depth", "resnet18", "not one of resnet18, resnet34, resnet50"),
        ("data.practice.n_train", -1, "--config.data.practice.n_train=-1: 0 or more"),
    ],
)
def test_a_field_that_cannot_be_so_is_named_by_its_flag(path, value, message):
    config = demo.get_config()
    config_fields.validate(config)
    with_field(config, path, value)
    with pytest.raises(ValueError, match=re.escape(message)):
        config_fields.validate(config)


def test_stages_of_their_own_length_are_named_by_their_own_flags():
    config = sasha.get_config()
    config_fields.validate(config.method, "config.method")
    config.method.policy.steps = 0
    with pytest.raises(ValueError, match=r"--config\.method\.policy\.steps=0: 1 or"):
        config_fields.validate(config.method, "config.method")


def every_config():
    """Configs of all config files, in each variant."""
    folders = pathlib.Path(demo.__file__).parent, pathlib.Path(abmil.__file__).parent
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        if not path.name.startswith("_"):
            module = runpy.run_path(str(path))
            takes_encoder = (
                "encoder" in inspect.signature(module["get_config"]).parameters
            )
            for argument in ["uni"] if takes_encoder else module.get("VARIANTS", ()):
                yield module["get_config"](argument)
            yield module["get_config"]()


def test_every_config_that_we_give_has_fields_of_their_types():
    configs = list(every_config())
    assert len(configs) > 50
    for config in configs:
        config_fields.check_types(config)
        silent = [f.path for f in config_fields.describe(config) if not f.meaning]
        assert not silent, f"{type(config).__name__}: no word in a docstring on these"


def test_a_description_has_every_field_with_its_value():
    """Inherited ones too, and each part before its own fields."""
    rows = {field.path: field for field in config_fields.describe(abmil.get_config())}
    plain = config_fields.to_plain(abmil.get_config())
    assert {*config_fields.flatten(plain)} <= {*rows}
    assert rows["encoder.depth"][1:3] == ("resnet18 | resnet34 | resnet50", "resnet50")
    assert rows["data.mpp"][1:3] == ("number or None", "None")
    assert rows["tissue.saturation"].type == "(number, number)"
    assert rows["method"][1:3] == ("ABMIL", "")
    assert rows["method.dropout"].meaning  # of its base class
    assert list(rows).index("method") + 1 == list(rows).index("method.width")
    assert rows["data.split.val"].meaning == rows["data.split.test"].meaning != ""
