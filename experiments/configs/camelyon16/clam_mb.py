"""CAMELYON16, every tile: CLAM-MB on the features of `abmil.py`.

    python -m experiments.camelyon16 \
        --config experiments/configs/camelyon16/clam_mb.py \
        --config.data.root=CAMELYON16 --config.encoder.weights=resnet50.safetensors

Not measured here: the slides are 700 GB.
"""

from experiments.configs.camelyon16 import abmil
from wsi_jax.methods.mil import CLAM
from wsi_jax.run.config import Experiment


def get_config() -> Experiment:
    config = abmil.get_config()
    config.method = CLAM(multi_branch=True)
    return config
