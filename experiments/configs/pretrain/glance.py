"""An encoder of 2 um/px for crops of 32 px: small, and it knows tissue by its detail.

    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/glance.py --config.tiles=FOLDER

As `phantom.py`, which says why most tiles borrow their coarse look. One crop takes
below a millisecond on one core of a CPU.
"""

from experiments.configs.pretrain import lc25000
from experiments.pretraining.pretrain_tiles import PretrainFolder
from experiments.pretraining.tile_classifier import TileClassifier
from wsi_jax.nets.encoder import ConvNeXtEncoder
from wsi_jax.training.augment import Augment


def get_config() -> PretrainFolder:
    config = lc25000.get_config()
    config.method = TileClassifier(
        encoder=ConvNeXtEncoder(
            blocks=(1,),
            width=32,
            stem=4,
            scale=1.0,
            mean=(0.7, 0.55, 0.7),
            std=(0.2, 0.2, 0.2),
        ),
        augment=Augment(crop=0.3, borrow=0.8, borrow_px=4),
    )
    config.train.batch, config.train.optimiser.learning_rate = 64, 2e-3
    config.train.optimiser.weight_decay = 1e-3
    return config
