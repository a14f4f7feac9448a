"""CAMELYON16, every tile: ABMIL on ImageNet ResNet-50 features at 0.5 um/px.

    python -m experiments.camelyon16 --config experiments/configs/camelyon16/abmil.py \
        --config.data.root=CAMELYON16 --config.encoder.weights=resnet50.safetensors

The features are those usual in the CLAM literature: ResNet-50 after its third stage,
1,024 numbers for each tile of 256 px. Not measured here: the slides are 700 GB.
"""

from experiments.camelyon16 import Camelyon16
from wsi_jax.methods.mil import ABMIL
from wsi_jax.nets.encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train


def get_config() -> Experiment:
    return Experiment(
        data=Camelyon16(),
        grid=Grid(mpp=0.5, size_px=256),
        encoder=Encoder(depth=Depth.resnet50, stages=3, norm=NormKind.frozen),
        method=ABMIL(),
        train=Train(steps=10_000, batch=1, balanced=True, class_weights=False),
    )
