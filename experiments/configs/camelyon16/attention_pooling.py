"""CAMELYON16: all tiles are scored, the 64 best and 64 worst pooled by squared average.

    python -m experiments.camelyon16 \
        --config experiments/configs/camelyon16/attention_pooling.py \
        --config.data.root=CAMELYON16 \
        --config.method.scorer.weights=resnet50.safetensors \
        --config.method.trunk.weights=resnet50.safetensors

After Liu, Zuo et al. 2024 and their patent: two ResNet-50, fully connected layers of
128. Tile size, k, m and schedule could not be had: those here are ours. Not measured
here: the slides are 700 GB.
"""

from experiments.camelyon16 import Camelyon16
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
        data=Camelyon16(),
        grid=Grid(mpp=8.0, size_px=14, min_tissue=0.25),
        encoder=None,
        method=AttentionPooling(
            scorer=_trunk(),
            trunk=_trunk(),
            mpp=0.5,
            tile_px=224,
            # An epoch: 243 slides, four at a time.
            renew=61,
            scoring=StageConfig(
                steps=1220, batch=4, validate_every=61, optimiser=_optimiser()
            ),
            precision=Dtype.bfloat16,
            score_chunk=512,
            stain=0.1,
        ),
        train=Train(
            steps=2440,
            batch=4,
            class_weights=False,
            validate_every=61,
            save_every=61,
            optimiser=_optimiser(),
        ),
    )


def _trunk() -> Encoder:
    return Encoder(
        depth=Depth.resnet50, stages=4, norm=NormKind.frozen, dtype=Dtype.bfloat16
    )


def _optimiser() -> Optimiser:
    return Optimiser(learning_rate=1e-4)
