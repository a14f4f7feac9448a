"""Max pooling: every tile through a frozen encoder, the highest logits count.

    wsi-jax train --method max --manifest my_slides.csv \
        --config.encoder.weights=resnet50.safetensors

Encoders as in `abmil.py`: `--method max:uni2_h`; without weights `max:quick`.
"""

from wsi_jax.configs import abmil
from wsi_jax.methods.mil import Max
from wsi_jax.run.config import Experiment


def get_config(encoder: str = "") -> Experiment:
    config = abmil.get_config(encoder)
    config.method = Max(**abmil.pool(encoder))
    return config
