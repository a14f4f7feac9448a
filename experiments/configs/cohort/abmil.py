"""Your own slides and labels: ABMIL on every tile.

    python -m experiments.cohort --config experiments/configs/cohort/abmil.py \
        --config.data.manifest=my_slides.csv \
        --config.encoder.weights=resnet50.safetensors

Any number of classes. For another method, import another config.
"""

from experiments.configs.camelyon16 import abmil
from wsi_jax.run.config import Experiment, Manifest


def get_config() -> Experiment:
    config = abmil.get_config()
    config.data = Manifest()
    return config
