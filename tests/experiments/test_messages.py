"""Every flag that a message or a docstring names is one that a command has."""

import ast
import dataclasses
import itertools
import pathlib
import re

import pytest

from experiments.bach import Bach
from experiments.camelyon16 import Camelyon16
from experiments.phantoms.make_bach import MakeBach
from experiments.phantoms.make_cohort import MakeCohort
from experiments.phantoms.make_tiles import MakeTiles
from experiments.pretraining.prepare_tiles import PrepareTiles
from experiments.pretraining.pretrain_config import (
    PretrainFolder,
    PretrainPatchCamelyon,
    PretrainPrepared,
)
from experiments.pretraining.sim_clr import SimCLR
from experiments.pretraining.tile_classifier import TileClassifier
from experiments.tcga_nsclc import TcgaNsclc
from experiments.tcga_prad import TcgaPrad
from wsi_jax.config_fields import is_config
from wsi_jax.methods.attention_pooling import AttentionPooling
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.methods.mil import CLAM
from wsi_jax.methods.patch_all import PatchAll
from wsi_jax.methods.sasha import SASHA
from wsi_jax.methods.streaming_clam import StreamingCLAM
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder, Encoder
from wsi_jax.nets.vit_encoder import ViTEncoder
from wsi_jax.run.config import Experiment, Manifest

ROOT = pathlib.Path(__file__).parent.parent.parent
DATA = (
    Manifest(),
    Camelyon16(practice=MakeCohort()),
    Bach(practice=MakeBach()),
    TcgaNsclc(),
    TcgaPrad(),
)
ENCODERS = Encoder(), ConvNeXtEncoder(), ViTEncoder()
METHODS = CLAM(), StreamingCLAM(), AttentionSampling(), AttentionPooling(), PatchAll()
RUNS = (
    *(Experiment(data=data) for data in DATA),
    *(Experiment(encoder=encoder) for encoder in ENCODERS),
    *(Experiment(method=method) for method in (*METHODS, SASHA())),
)
PRETRAINING = (
    *(
        kind(method=method(encoder=encoder))
        for kind, method, encoder in itertools.product(
            (PretrainFolder, PretrainPatchCamelyon, PretrainPrepared),
            (TileClassifier, SimCLR),
            ENCODERS,
        )
    ),
)
PRACTICE = MakeCohort(), MakeTiles(), MakeBach(), PrepareTiles()
ALL = *RUNS, *PRETRAINING, *PRACTICE


def paths(config, above=""):
    """Paths of all fields of a tree, and of the fields within them."""
    for field in dataclasses.fields(config):
        yield (path := f"{above}{field.name}")
        if is_config(value := getattr(config, field.name)):
            yield from paths(value, f"{path}.")


def texts(path):
    """(line, text) of the strings of a file; "{}" for a value."""
    tree, parts = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(part) for part in node.values}
            literals = (getattr(part, "value", "") for part in node.values)
            text = "".join(p if isinstance(p, str) else "{}" for p in literals)
            yield node.lineno, text
        elif isinstance(getattr(node, "value", None), str) and id(node) not in parts:
            yield node.lineno, node.value


def unknown(path, fields):
    """Flags in a file that are no fields, with their lines."""
    for line, text in texts(path):
        for flag in re.findall(r"--(?:no)?config\.((?:\w+|{})(?:\.(?:\w+|{}))*)", text):
            one = re.escape(flag).replace(r"\{\}", "[a-z0-9_.]+")
            if flag not in fields and not any(re.fullmatch(one, f) for f in fields):
                yield f"{path.relative_to(ROOT)}:{line}: --config.{flag}"


def test_every_flag_in_a_text_is_a_field_of_some_config():
    files = [*ROOT.glob("wsi_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    # These speak of flags as such: a.b.
    example = {"config_command_line.py", "config_file.py", "config_fields.py"}
    fields = {name for config in ALL for name in paths(config)}
    files = [path for path in files if path.name not in example]
    assert [flag for path in files for flag in unknown(path, fields)] == []


def test_errors_of_a_practice_cohort_name_the_flags_of_the_run(tmp_path):
    (tmp_path / "cohort.json").write_text('{"config": {"seed": 1}}')
    for data in (Camelyon16, Bach):
        practice = MakeCohort() if data is Camelyon16 else MakeBach()
        cohort = data(root=str(tmp_path), practice=practice)
        with pytest.raises(ValueError, match=r"folder with --config\.data\.root$"):
            cohort.cohort()
        practice.tiles, practice.kinds = "nowhere", ("a",)
        with pytest.raises(ValueError, match=r"--config\.data\.practice\.kinds"):
            cohort.cohort()
