"""BACH, every tile: ABMIL on ImageNet ResNet-50 features at 0.42 um/px.

    python -m experiments.bach --config experiments/configs/bach/abmil.py \
        --config.data.root=ICIAR2018_BACH_Challenge \
        --config.encoder.weights=resnet50.safetensors

A field is 8 x 6 tiles of 256 px. A pathologist chose it for what it shows, so none of
them is background. Not measured here: the images are not at hand.
"""

from experiments.bach import Bach
from wsi_jax.data.bach import MPP
from wsi_jax.methods.mil import ABMIL
from wsi_jax.nets.encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train


def get_config() -> Experiment:
    return Experiment(
        data=Bach(),
        grid=Grid(mpp=MPP, size_px=256, min_tissue=0.0),
        encoder=Encoder(depth=Depth.resnet50, stages=3, norm=NormKind.frozen),
        method=ABMIL(),
        train=Train(steps=3000, batch=8, validate_every=30, save_every=300),
    )
