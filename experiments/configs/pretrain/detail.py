"""An encoder of 1 um/px for practice cohorts of drawn tissue: small, and near-sighted.

    python -m experiments.phantoms.make_tiles \
        --config experiments/configs/pretrain/textures.py \
        --config.out=tiles
    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/detail.py --config.tiles=tiles

As `drawn.py`, with a trunk that takes a fifth of a millisecond for a tile of 32 px on
one core of a CPU: for methods that encode every tile of a slide many times.
"""

from experiments.configs.pretrain import drawn
from experiments.pretraining.pretrain_tiles import PretrainFolder
from wsi_jax.nets.encoder import ConvNeXtEncoder


def get_config() -> PretrainFolder:
    config = drawn.get_config()
    config.method.encoder = ConvNeXtEncoder(
        blocks=(1,),
        width=32,
        stem=4,
        scale=1.0,
        mean=(0.7, 0.55, 0.7),
        std=(0.2, 0.2, 0.2),
    )
    config.method.coarser = 1
    config.train.optimiser.learning_rate = 2e-3
    config.train.optimiser.weight_decay = 1e-3
    return config
