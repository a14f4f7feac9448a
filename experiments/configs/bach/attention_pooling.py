"""BACH: tiles of images that lie on the device, scored, sifted and pooled.

    python -m experiments.bach --config experiments/configs/bach/attention_pooling.py \
        --config.data.root=ICIAR2018_BACH_Challenge \
        --config.method.scorer.weights=resnet50.safetensors \
        --config.method.trunk.weights=resnet50.safetensors

After Liu, Zuo et al. 2024; whether they took these photographs is not known, and tile
size, k, m and schedule are ours. A tile's score is 1 - p(normal), whichever of the
other classes it is: ours too. Not measured here: the images are not at hand.
"""

from experiments.bach import Bach
from wsi_jax.data.bach import MPP
from wsi_jax.methods.attention_pooling import AttentionPooling
from wsi_jax.nets.encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import StageConfig, Train
from wsi_jax.training.optimiser import Optimiser
from wsi_jax.types import Dtype


def get_config() -> Experiment:
    return Experiment(
        data=Bach(),
        grid=Grid(mpp=8 * MPP, size_px=28, min_tissue=0.0),
        encoder=None,
        method=AttentionPooling(
            scorer=_trunk(),
            trunk=_trunk(),
            mpp=MPP,
            tile_px=224,
            best=12,
            worst=12,
            # An epoch: 320 images, eight at a time.
            renew=40,
            scoring=StageConfig(
                steps=800, batch=8, validate_every=40, optimiser=_optimiser()
            ),
            resident=True,
            stain=0.1,
        ),
        train=Train(
            steps=2_000,
            batch=8,
            class_weights=False,
            validate_every=40,
            save_every=200,
            optimiser=_optimiser(),
        ),
    )


def _optimiser() -> Optimiser:
    return Optimiser(learning_rate=1e-4)


def _trunk() -> Encoder:
    return Encoder(depth=Depth.resnet50, norm=NormKind.frozen, dtype=Dtype.bfloat16)
