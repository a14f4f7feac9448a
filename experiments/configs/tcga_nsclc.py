"""TCGA's lung cancers by SASHA: slides at 4 um/px (2.5x), a part at 1 um/px (10x).

    python -m experiments.tcga_nsclc --config experiments/configs/tcga_nsclc.py \
        --config.data.luad=TCGA-LUAD --config.data.lusc=TCGA-LUSC \
        --config.encoder.weights=resnet50.safetensors

Not measured here: the slides are a terabyte.
"""

from experiments.tcga_nsclc import TcgaNsclc
from wsi_jax.configs import sasha
from wsi_jax.run.config import Experiment


def get_config() -> Experiment:
    config = sasha.get_config()
    config.data, config.grid.mpp = TcgaNsclc(), 4.0
    return config
