"""An encoder of 0.972 um/px from PatchCamelyon: lymph nodes, with tumour or without.

    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/patch_camelyon.py \
        --config.data_dir=FOLDER

TensorFlow Datasets must have prepared it there (`tfds build patch_camelyon`). It may
serve CAMELYON16 with its official test slides, not a cross-validation over training
slides: those it has seen. Not measured here: the tiles are 7.5 GB.
"""

from experiments.pretraining.pretrain_config import PretrainPatchCamelyon
from experiments.pretraining.tile_classifier import TileClassifier
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def get_config() -> PretrainPatchCamelyon:
    return PretrainPatchCamelyon(
        method=TileClassifier(encoder=Encoder(depth=Depth.resnet34, stages=3)),
        train=Train(
            steps=20_000,
            batch=256,
            validate_every=1000,
            save_every=1000,
            patience=5,
            optimiser=Optimiser(learning_rate=1e-3, weight_decay=0.05),
        ),
    )
