"""TCGA-PRAD: a few crops of each slide, where and at which magnification it chooses.

    python -m experiments.tcga_prad \
        --config experiments/configs/tcga_prad/attention_sampling.py \
        --config.data.root=TCGA-PRAD --config.data.clinical=clinical.tsv \
        --config.method.trunk.weights=resnet50.safetensors

Zhang et al. 2021 tried a subset of these slides; which one and for what task could not
be had. The schedule of `camelyon16/attention_sampling.py`. Not measured here: the
slides are hundreds of gigabytes.
"""

from experiments.configs.camelyon16 import attention_sampling
from experiments.tcga_prad import TcgaPrad
from wsi_jax.run.config import Experiment


def get_config() -> Experiment:
    config = attention_sampling.get_config()
    config.data = TcgaPrad()
    return config
