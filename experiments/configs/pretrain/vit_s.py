"""A ViT-S/16 of 1 um/px from random weights, on labelled tiles of 224 px.

    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/vit_s.py --config.tiles=FOLDER

Tiles may have any side that 16 divides; then `--config.method.encoder.native_px` is to
be that side. The mean of the patches' tokens serves better than a class token where
tiles are few (Beyer et al. 2022), branches that begin small (Touvron et al. 2021) and a
long rise of the rate keep the first steps from running away. 22 million parameters want
an accelerator, and more tiles than LC25000 has. Not measured.
"""

from experiments.pretraining.pretrain_tiles import PretrainFolder
from experiments.pretraining.tile_classifier import TileClassifier
from wsi_jax.nets.vit_encoder import Output, ViTEncoder
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def get_config() -> PretrainFolder:
    return PretrainFolder(
        method=TileClassifier(
            encoder=ViTEncoder(layer_scale=0.1, output=Output.mean, native_px=224)
        ),
        train=Train(
            steps=20_000,
            batch=128,
            validate_every=1000,
            save_every=1000,
            patience=0,
            class_weights=False,
            optimiser=Optimiser(learning_rate=3e-4, weight_decay=0.05, warmup=0.1),
        ),
    )
