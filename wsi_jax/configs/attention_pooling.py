"""End-to-end attention pooling: all tiles are scored, the best and worst 64 pooled.

    wsi-jax train --method attention_pooling --manifest my_slides.csv \
        --config.method.scorer.weights=resnet50.safetensors \
        --config.method.trunk.weights=resnet50.safetensors

After Liu, Zuo et al. 2024 and their patent: two ResNet-50, fully connected layers of
128, squared-average attention. Tile size, k, m and schedule could not be had: those
here are ours, for some 240 training slides.

    wsi-jax train --method attention_pooling:quick --manifest my_slides.csv

needs no weights: small ConvNeXts learn from nothing, in minutes.
"""

from wsi_jax.configs._quick import quick_optimiser, quick_train, small_trunk
from wsi_jax.methods.attention_pooling import AttentionPooling, Scoring
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.crop_options import CropAugmentation
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.tile_pooling import PoolingHead
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import named_choice
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser
from wsi_jax.types import Dtype

EPOCH = 61  # of 243 slides, four at a time


def get_config(variant: str = "full") -> Experiment:
    return named_choice(variant, VARIANTS)()


def full() -> Experiment:
    optimiser = lambda: Optimiser(learning_rate=1e-4)
    scoring = Scoring(
        steps=20 * EPOCH,
        batch=4,
        validate_every=EPOCH,
        optimiser=optimiser(),
        renew=EPOCH,
        chunk=512,
        dtype=Dtype.bfloat16,
    )
    return Experiment(
        grid=Grid(mpp=8.0, size_px=14, min_tissue=0.25),
        encoder=None,
        method=AttentionPooling(
            scorer=trunk(),
            trunk=trunk(),
            mpp=0.5,
            tile_px=224,
            scoring=scoring,
            augment=CropAugmentation(stain=0.1),
        ),
        train=Train(
            steps=40 * EPOCH,
            batch=4,
            class_weights=False,
            validate_every=EPOCH,
            save_every=EPOCH,
            optimiser=optimiser(),
        ),
    )


def trunk() -> Encoder:
    """ResNet-50 as ImageNet has trained it, once weights are named."""
    return Encoder(depth=Depth.resnet50, norm=NormKind.frozen, dtype=Dtype.bfloat16)


def quick() -> Experiment:
    return Experiment(
        grid=Grid(mpp=16.0, size_px=4, min_tissue=0.5),
        encoder=None,
        method=AttentionPooling(
            scorer=small_trunk(),
            trunk=small_trunk(),
            mpp=1.0,
            tile_px=64,
            best=8,
            worst=8,
            scoring=Scoring(
                steps=100,
                batch=8,
                validate_every=20,
                optimiser=quick_optimiser(),
                tiles=4,
                renew=20,
            ),
            head=PoolingHead(width=64, attention_width=32),
            chunk=None,
        ),
        train=quick_train(steps=160),
    )


VARIANTS = {"full": full, "quick": quick}
