"""An encoder of 2 um/px from LC25000's tiles, sorted into clusters of origin.

    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/lc25000.py --config.tiles=FOLDER

It learns from clusters that practice slides are never made of, so that any practice
cohort of the same folder may use it. To judge what such an encoder can learn from more
tiles, and never for a cohort: `--config.part=train_and_encoder`.
"""

from experiments.pretraining.pretrain_tiles import PretrainFolder
from experiments.pretraining.tile_classifier import TileClassifier
from wsi_jax.nets.encoder import Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def get_config() -> PretrainFolder:
    return PretrainFolder(
        mpp=2.0,
        groups=(("colon_n", "colon_aca"), ("lung_n", "lung_aca", "lung_scc")),
        method=TileClassifier(encoder=Encoder(width=16, norm=NormKind.group)),
        train=Train(
            steps=1800,
            batch=32,
            validate_every=150,
            save_every=150,
            patience=0,
            class_weights=False,
            optimiser=Optimiser(learning_rate=5e-3, weight_decay=0.05, warmup=0.1),
        ),
    )
