"""A phantom cohort by CLAM-SB, on the features of `abmil.py`.

    python -m experiments.camelyon16 --config experiments/configs/phantom/clam_sb.py \
        --config.data.practice.tiles=FOLDER --config.data.practice.preset=needle \
        --config.data.root=cohorts/needle --config.encoder.weights=encoder.safetensors \
        --config.features=runs/abmil/features
"""

from experiments.configs.phantom import abmil
from wsi_jax.methods.mil import CLAM
from wsi_jax.run.config import Experiment


def get_config() -> Experiment:
    config = abmil.get_config()
    config.method = CLAM(width=128, attention=64, standardise=True)
    return config
