"""Labelled tiles that seconds suffice to tell apart, and a pre-training on them."""

import csv

import numpy as np
from PIL import Image

from experiments.pretraining.augment import Augment
from experiments.pretraining.pretrain_config import PretrainFolder
from experiments.pretraining.tile_classifier import TileClassifier
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser

KINDS = ("x_smooth", "x_rough", "y_bright", "y_dark")


def write(folder):
    """Four classes in two groups, 24 clusters of two tiles each; 32 px at 1 um/px."""
    rng, rows = np.random.default_rng(0), []
    for kind in KINDS:
        (folder / kind).mkdir()
        for i in range(48):
            light = {"y_bright": 190, "y_dark": 70}.get(kind, 130)
            tile = rng.normal(light, 15, (1, 1, 3)) + np.zeros((32, 32, 3))
            tile += rng.normal(0, 50 if kind == "x_rough" else 4, (32, 32, 1))
            name = f"{kind}/{i}.png"
            Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(folder / name)
            rows.append((name, kind, f"{kind}:{i // 2}"))
    with open(folder / "index.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "class", "cluster"), *rows])


def small(tiles, **train) -> PretrainFolder:
    """A pre-training on a folder of tiles, in few steps."""
    plan = {"steps": 12, "batch": 8, "log_every": 1, "validate_every": 4}
    return PretrainFolder(
        tiles=str(tiles),
        mpp=2.0,
        val=0.3,
        groups=(KINDS[:2], KINDS[2:]),
        method=TileClassifier(
            encoder=Encoder(stages=1, width=8), augment=Augment(crop=1.0)
        ),
        train=Train(
            **plan | {"save_every": 4} | train, optimiser=Optimiser(learning_rate=5e-3)
        ),
    )
