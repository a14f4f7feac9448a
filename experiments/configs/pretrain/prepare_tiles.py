"""Tissue tiles of your own cohort as records, lossless, at 0.5 um/px.

    python -m experiments.pretraining.prepare_tiles \
        --config experiments/configs/pretrain/prepare_tiles.py \
        --config.data.manifest=my_slides.csv --config.out=prepared

`--config.encoding=jpeg` takes fewer bytes and alters pixels a little.
"""

from experiments.pretraining.prepare_tiles import PrepareTiles
from wsi_jax.slides.grid import Grid


def get_config() -> PrepareTiles:
    return PrepareTiles(grid=Grid(mpp=0.5, size_px=256))
