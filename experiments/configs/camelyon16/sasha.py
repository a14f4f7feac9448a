"""CAMELYON16 seen at 2 um/px (5x), and zooms to 0.5 um/px (20x) into a fifth of it.

    python -m experiments.camelyon16 --config experiments/configs/camelyon16/sasha.py \
        --config.data.root=CAMELYON16 --config.encoder.weights=resnet50.safetensors

`--config.method.share=0.1` is SASHA-0.1. Not measured here: the slides are 700 GB.
"""

from experiments.camelyon16 import Camelyon16
from wsi_jax.methods.sasha import SASHA
from wsi_jax.nets.encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train


def get_config() -> Experiment:
    return Experiment(
        data=Camelyon16(),
        grid=Grid(mpp=2.0, size_px=256),
        encoder=Encoder(depth=Depth.resnet50, stages=3, norm=NormKind.frozen),
        method=SASHA(standardise=True, warm=True),
        train=Train(balanced=True, class_weights=False),
    )
