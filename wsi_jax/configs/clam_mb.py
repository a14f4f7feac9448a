"""CLAM-MB: every tile through a frozen encoder, one attention branch a class.

    wsi-jax train --method clam_mb --manifest my_slides.csv \
        --config.encoder.weights=resnet50.safetensors

Encoders as in `abmil.py`: `--method clam_mb:uni2_h`; without weights `clam_mb:quick`.
"""

from wsi_jax.configs import abmil
from wsi_jax.methods.mil import CLAM
from wsi_jax.run.config import Experiment


def get_config(encoder: str = "") -> Experiment:
    config = abmil.get_config(encoder)
    config.method = CLAM(multi_branch=True, **abmil.attention_pool(encoder))
    return config
