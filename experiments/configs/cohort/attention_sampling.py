"""Any manifest: a few crops of each slide, chosen by attention on its overview.

    python -m experiments.cohort \
        --config experiments/configs/cohort/attention_sampling.py \
        --config.data.manifest=my_slides.csv \
        --config.method.trunk.weights=resnet50.safetensors

The schedule of `camelyon16/attention_sampling.py`, whose docstring says what is ours.
"""

from experiments.configs.camelyon16 import attention_sampling
from wsi_jax.run.config import Experiment, Manifest


def get_config() -> Experiment:
    config = attention_sampling.get_config()
    config.data = Manifest()
    return config
