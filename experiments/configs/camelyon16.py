"""CAMELYON16 by each method; the config of the method is that of `wsi_jax/configs`.

    python -m experiments.camelyon16 --config experiments/configs/camelyon16.py:abmil \
        --config.data.root=CAMELYON16 --config.encoder.weights=resnet50.safetensors

`mean`, `max`, `abmil`, `clam_sb`, `clam_mb`: every tile of 256 px at 0.5 um/px, on the
same features. `sasha` sees 2 um/px; `sasha_paper` trains it as its authors' code does.
Those with trunks of their own take weights by other flags:

    attention_sampling  --config.method.trunk.weights=resnet50.safetensors
    attention_pooling   the same, and --config.method.scorer.weights
    streaming_clam      --config.method.trunk.weights=resnet34.safetensors, and
                        --config.data.splits=SPLITS, the folder of the published
                        train_0.csv, val_0.csv and test.csv (Dooper et al. 2023)

Not measured here: the slides are 700 GB.
"""

from experiments.camelyon16 import Camelyon16
from wsi_jax.configs import (
    abmil,
    attention_pooling,
    attention_sampling,
    clam_mb,
    clam_sb,
    max,
    mean,
    sasha,
    streaming_clam,
)
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import named_choice


def get_config(method: str = "abmil") -> Experiment:
    config = named_choice(method, VARIANTS)()
    config.data = Camelyon16()
    return config


def published_streaming() -> Experiment:
    config = streaming_clam.get_config()
    config.grid.mpp = 0.5
    return config


VARIANTS = {
    "abmil": abmil.get_config,
    "attention_pooling": attention_pooling.get_config,
    "attention_sampling": attention_sampling.get_config,
    "clam_mb": clam_mb.get_config,
    "clam_sb": clam_sb.get_config,
    "max": max.get_config,
    "mean": mean.get_config,
    "sasha": sasha.get_config,
    "sasha_paper": sasha.paper,
    "streaming_clam": published_streaming,
}
