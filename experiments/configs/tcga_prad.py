"""TCGA-PRAD by two methods, at 0.5 um/px and coarser.

    python -m experiments.tcga_prad --config experiments/configs/tcga_prad.py:abmil \
        --config.data.root=TCGA-PRAD --config.data.clinical=clinical.tsv \
        --config.encoder.weights=resnet50.safetensors

Five ISUP grade groups, most men in the middle: `abmil` draws classes equally often. For
Gleason 8 to 10 against less: `--config.data.grading=high_grade`. `attention_sampling`
takes `--config.method.trunk.weights`; Zhang et al. 2021 tried a subset of these slides,
which one and for what task could not be had. Not measured here: the slides are hundreds
of gigabytes.
"""

from experiments.tcga_prad import TcgaPrad
from wsi_jax.configs import abmil, attention_sampling
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import named_choice


def get_config(method: str = "abmil") -> Experiment:
    config = named_choice(method, VARIANTS)()
    config.data = TcgaPrad()
    return config


VARIANTS = {
    "abmil": abmil.get_config,
    "attention_sampling": attention_sampling.get_config,
}
