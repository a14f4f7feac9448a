"""A practice cohort, whole slides: a small ConvNeXt at 0.5 um/px, from random weights.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/practice.py:phantom \
        --config.preset=fine_only --config.n_train=40 --config.n_val=20 \
        --config.out=cohorts/fine_only
    python -m experiments.cohort \
        --config experiments/configs/phantom/streaming_clam.py \
        --config.data.manifest=cohorts/fine_only/slides.csv

For comparison CLAM-SB on tiles, whose trunk never learns: `frozen_trunk` has the same
cells, head and random trunk; `frozen_encoder` has that of `pretrain/tiles.py:phantom`
(`--config.encoder.weights=encoder.safetensors`) on the same cells, at 1 um/px.
"""

from experiments.configs.phantom import balanced
from experiments.configs.phantom.mil import train_pool
from experiments.configs.pretrain import tiles
from wsi_jax.methods.mil import CLAM
from wsi_jax.methods.streaming_clam import Augment, StreamingCLAM
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.run.config_file import named_choice
from wsi_jax.slides.grid import Grid

EPOCH = 20  # of 40 slides, two to a batch: one of each class


def get_config(variant: str = "streamed") -> Experiment:
    return named_choice(variant, VARIANTS)()


def streamed() -> Experiment:
    every = {"validate_every": EPOCH, "save_every": EPOCH}
    return Experiment(
        data=Manifest(classes=("normal", "tumor")),
        grid=Grid(mpp=0.5, size_px=256, min_tissue=0.5),
        encoder=None,
        method=StreamingCLAM(
            trunk=tiles.small_convnext(stem=8),
            tile_px=256,
            pool=32,
            augment=Augment(hue=0.0, saturation=0.0, value=0.0),
            width=64,
            attention=32,
        ),
        train=balanced(2e-3, steps=8 * EPOCH, batch=2, **every),
    )


def frozen_trunk() -> Experiment:
    config = streamed()
    config.encoder = config.method.trunk
    config.method = CLAM(width=64, attention=32, standardise=True)
    config.train = train_pool()
    return config


def frozen_encoder() -> Experiment:
    config, pretrained = frozen_trunk(), tiles.phantom()
    config.grid = Grid(mpp=pretrained.mpp, size_px=128, min_tissue=0.5)
    config.encoder = pretrained.method.encoder
    return config


VARIANTS = {
    "streamed": streamed,
    "frozen_trunk": frozen_trunk,
    "frozen_encoder": frozen_encoder,
}
