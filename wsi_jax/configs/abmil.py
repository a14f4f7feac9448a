"""ABMIL: every tile through a frozen encoder, gated attention over tiles.

    wsi-jax train --method abmil --manifest my_slides.csv \
        --config.encoder.weights=resnet50.safetensors
    wsi-jax train --method abmil:uni2_h --manifest my_slides.csv \
        --config.encoder.weights=uni2_h.safetensors
    wsi-jax train --method abmil:quick --manifest my_slides.csv

Any number of classes. Behind a colon stands an encoder that others have trained, by its
name in `wsi_jax/nets/encoders.toml`, which says where the file is to be had. On an
accelerator add `--config.encoder.dtype=bfloat16`. Otherwise features are those usual in
the CLAM literature: ResNet-50 after its third stage, 1,024 numbers for a tile.

`abmil:quick` needs no weights: features of a random encoder, which knows colour and
texture and no tissue. It finds faults in a cohort, and gives a floor to compare with.
"""

from typing import Any

from wsi_jax.methods.mil import ABMIL
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.foundation_models import foundation_model
from wsi_jax.nets.norm import NormKind
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser

QUICK = "quick"


def get_config(encoder: str = "") -> Experiment:
    if encoder == QUICK:
        return quick()
    config = Experiment(
        grid=Grid(mpp=0.5, size_px=256),
        encoder=Encoder(depth=Depth.resnet50, stages=3, norm=NormKind.frozen),
        method=ABMIL(),
        train=Train(steps=10_000, batch=1, balanced=True, class_weights=False),
    )
    if encoder:
        model = foundation_model(encoder)
        config.encoder = model.encoder
        # That no one encodes a cohort with random weights by forgetting to name theirs.
        config.encoder.weights = f"{encoder}.safetensors"
        config.grid = Grid(mpp=model.mpp or 0.5, size_px=model.tile_px)
    return config


def quick() -> Experiment:
    """A random encoder and a small pool: no weights, minutes on a laptop."""
    return Experiment(
        grid=Grid(mpp=1.0, size_px=128),
        encoder=Encoder(stages=3),
        method=ABMIL(**attention_pool(QUICK)),
        train=Train(
            steps=400,
            validate_every=20,
            save_every=20,
            optimiser=Optimiser(learning_rate=1e-3),
        ),
    )


def pool(variant: str) -> dict[str, Any]:
    """Options of the pool that a variant has in every method of frozen encoders."""
    return {"width": 128, "standardise": True} if variant == QUICK else {}


def attention_pool(variant: str) -> dict[str, Any]:
    """As `pool`, of methods with attention."""
    return pool(variant) | ({"attention": 64} if variant == QUICK else {})
