"""What a run of the tiny stages leaves: logs, distilled slides, weights, features."""

import pathlib

import h5py

from wsi_jax.training.checkpoint import Checkpoints
from wsi_jax.training.log import read_metrics

FILE = pathlib.Path(__file__).with_name("tiny_zooms.py")
STAGES = {"gather": 30, "guess": 12, "rival": 30, "look": 30}


def logs(folder):
    return {name: read_metrics(folder / name / "metrics.jsonl") for name in STAGES}


def distilled(folder):
    """All arrays and attributes of what was distilled."""
    arrays_of = {}
    for path in sorted(folder.glob("gather/distilled/*.h5")):
        with h5py.File(path) as f:
            arrays = {name: f[name][()] for name in f}
            arrays_of[path.stem] = arrays | dict(f.attrs)
    return arrays_of


def best(folder, stage):
    """The parameters of the best validation."""
    manager = Checkpoints(folder / stage / "best")
    step = manager._manager.latest_step()
    tree = manager._manager.restore(step)["tree"]
    manager.close()
    return tree


def feature_files(features):
    """Feature files of tiles and of children, by slide."""
    paths = list(features.glob("*/*/*.h5"))
    split = lambda finer: {
        p.stem: p for p in paths if ("_children" in p.parts[-3]) == finer
    }
    return split(False), split(True)
