"""What `streaming_clam.py` learns from nothing, by an encoder that has learnt: CLAM-SB.

    python -m experiments.cohort \
        --config experiments/configs/phantom/frozen_encoder.py \
        --config.data.manifest=cohorts/fine_only/slides.csv \
        --config.encoder.weights=encoder.safetensors

The encoder is that of `pretrain/phantom.py`, which knows real tissue by its detail;
its tiles of 128 px at 1 um/px are the cells that the other streams.
"""

from experiments.configs.phantom import frozen_trunk
from experiments.configs.pretrain import phantom
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid


def get_config() -> Experiment:
    config, pretrained = frozen_trunk.get_config(), phantom.get_config()
    config.grid = Grid(mpp=pretrained.mpp, size_px=128, min_tissue=0.5)
    config.encoder = pretrained.method.encoder
    return config
