"""An encoder of 1 um/px for phantoms: it must know tissue by its detail.

    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/phantom.py --config.tiles=FOLDER

As `lc25000.py`, from clusters that no phantom is made of. Nine tiles of ten are shown
on the coarse look of another, as the foci of a phantom are, and fields are half a tile
wide: an encoder that has learnt colour and density finds nothing in `fine_only`.
"""

from experiments.configs.pretrain import lc25000
from experiments.pretraining.pretrain_tiles import PretrainFolder
from wsi_jax.training.augment import Augment


def get_config() -> PretrainFolder:
    config = lc25000.get_config()
    config.mpp = 1.0
    config.method.augment = Augment(crop=0.5, borrow=0.9)
    config.train.steps = 4200
    config.train.validate_every = config.train.save_every = 300
    return config
