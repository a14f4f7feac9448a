"""ABMIL: every tile through a frozen encoder, gated attention over tiles.

    wsi-jax train --method abmil --manifest my_slides.csv \
        --config.encoder.weights=resnet50.safetensors
    wsi-jax train --method abmil:uni2_h --manifest my_slides.csv \
        --config.encoder.weights=uni2_h.safetensors

Any number of classes. Behind a colon stands an encoder that others have trained, by its
name in `wsi_jax/nets/encoders.toml`, which says where the file is to be had. On an
accelerator add `--config.encoder.dtype=bfloat16`. Otherwise features are those usual in
the CLAM literature: ResNet-50 after its third stage, 1,024 numbers for a tile.
"""

from wsi_jax.methods.mil import ABMIL
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.foundation_models import foundation_model
from wsi_jax.nets.norm import NormKind
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train


def get_config(encoder: str = "") -> Experiment:
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
