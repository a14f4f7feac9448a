"""What `attention_needle.py` chooses from: every tile, read, pooled and trained on.

    python -m experiments.cohort --config experiments/configs/phantom/patch_needle.py \
        --config.data.manifest=cohorts/needle/slides.csv \
        --config.method.trunk.weights=encoder.safetensors
"""

from experiments.configs.phantom import attention_needle
from wsi_jax.methods.patch_all import PatchAll
from wsi_jax.run.config import Experiment


def get_config() -> Experiment:
    config = attention_needle.get_config()
    looks = config.method
    config.method = PatchAll(
        trunk=looks.trunk,
        mpp=looks.mpps[0],
        tile_px=looks.crop_px,
        width=looks.width,
        deviation=looks.deviation,
        trunk_rate=looks.trunk_rate,
        centred=looks.centred,
        attention=looks.gated,
        branches=looks.branches,
    )
    config.train.batch, config.train.steps = 8, 150
    config.train.validate_every = 50
    return config
