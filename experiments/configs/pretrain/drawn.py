"""An encoder of 1 um/px for practice cohorts of drawn tissue, told by its detail.

    python -m experiments.phantoms.make_tiles \
        --config experiments/configs/pretrain/textures.py \
        --config.out=tiles
    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/drawn.py --config.tiles=tiles

As `phantom.py`, which says why most tiles borrow their coarse look, on fields of 38 px.
SASHA sees whole slides at 4 um/px by this encoder before it zooms: there it is to tell
the coarse look, which says where a closer look pays, and which 1 um/px looks past.
"""

from experiments.configs.pretrain import phantom
from experiments.pretraining.pretrain_tiles import PretrainFolder
from wsi_jax.training.augment import Augment


def get_config() -> PretrainFolder:
    config = phantom.get_config()
    config.groups = ()
    config.method.augment = Augment(crop=0.15, blur=1.0, borrow=0.9, borrow_px=8)
    config.method.coarser = 4
    config.train.batch, config.train.steps = 64, 600
    config.train.validate_every = config.train.save_every = 300
    return config
