"""CAMELYON16, every tile: mean pooling on the features of `abmil.py`.

    python -m experiments.camelyon16 --config experiments/configs/camelyon16/mean.py \
        --config.data.root=CAMELYON16 --config.encoder.weights=resnet50.safetensors

Not measured here: the slides are 700 GB.
"""

from experiments.configs.camelyon16 import abmil
from wsi_jax.methods.mil import Mean
from wsi_jax.run.config import Experiment


def get_config() -> Experiment:
    config = abmil.get_config()
    config.method = Mean()
    return config
