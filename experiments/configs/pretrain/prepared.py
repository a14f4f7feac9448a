"""An encoder from the prepared tiles of your own cohort, each labelled as its slide.

    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/prepared.py --config.tiles=prepared

Of a tumour slide most tiles have no tumour: labels are weak, and the encoder is no
better than they are. All tiles are held in memory, as `most` allows. Not measured.
"""

from experiments.pretraining.pretrain_tiles import PretrainPrepared
from experiments.pretraining.tile_classifier import TileClassifier
from wsi_jax.nets.encoder import Depth, Encoder
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def get_config() -> PretrainPrepared:
    return PretrainPrepared(
        mpp=0.5,
        most=50_000,
        method=TileClassifier(encoder=Encoder(depth=Depth.resnet34, stages=3)),
        train=Train(
            steps=10_000,
            batch=128,
            validate_every=1000,
            save_every=1000,
            patience=5,
            optimiser=Optimiser(learning_rate=1e-3, weight_decay=0.05),
        ),
    )
