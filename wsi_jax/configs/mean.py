"""Mean pooling: every tile through a frozen encoder, features averaged.

    wsi-jax train --method mean --manifest my_slides.csv \
        --config.encoder.weights=resnet50.safetensors

Encoders as in `abmil.py`: `--method mean:uni2_h`; without weights `mean:quick`.
"""

from wsi_jax.configs import abmil
from wsi_jax.methods.mil import Mean
from wsi_jax.run.config import Experiment


def get_config(encoder: str = "") -> Experiment:
    config = abmil.get_config(encoder)
    config.method = Mean(**abmil.pool(encoder))
    return config
