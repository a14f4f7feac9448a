"""Your own slides and labels: CLAM-SB on every tile.

    python -m experiments.cohort --config experiments/configs/cohort/clam_sb.py \
        --config.data.manifest=my_slides.csv \
        --config.encoder.weights=resnet50.safetensors

Any number of classes. For another method, import another config.
"""

from experiments.configs.camelyon16 import clam_sb
from wsi_jax.run.config import Experiment, Manifest


def get_config() -> Experiment:
    config = clam_sb.get_config()
    config.data = Manifest()
    return config
