"""Tiles for the pre-training of an encoder for practice cohorts of drawn tissue.

    python -m experiments.phantoms.make_tiles \
        --config experiments/configs/pretrain/textures.py \
        --config.out=tiles
    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/glance.py --config.tiles=tiles
"""

from experiments.phantoms.make_tiles import MakeTiles


def get_config() -> MakeTiles:
    return MakeTiles()
