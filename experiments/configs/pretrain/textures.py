"""Tiles for the pre-training of an encoder for practice cohorts of drawn tissue.

    python -m experiments.make_tiles --config experiments/configs/pretrain/textures.py \
        --config.out=tiles
    python -m experiments.pretrain_tiles \
        --config experiments/configs/pretrain/glance.py --config.tiles=tiles
"""

from experiments.make_tiles import MakeTiles


def get_config() -> MakeTiles:
    return MakeTiles()
