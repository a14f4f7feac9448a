"""TCGA-PRAD, every tile: ABMIL on ImageNet ResNet-50 features at 0.5 um/px.

    python -m experiments.tcga_prad --config experiments/configs/tcga_prad/abmil.py \
        --config.data.root=TCGA-PRAD --config.data.clinical=clinical.tsv \
        --config.encoder.weights=resnet50.safetensors

Five ISUP grade groups, most men in the middle: classes are drawn equally often. For
Gleason 8 to 10 against less: `--config.data.grading=high_grade`. Not measured here: the
slides are hundreds of gigabytes.
"""

from experiments.configs.camelyon16 import abmil
from experiments.tcga_prad import TcgaPrad
from wsi_jax.run.config import Experiment


def get_config() -> Experiment:
    config = abmil.get_config()
    config.data = TcgaPrad()
    return config
