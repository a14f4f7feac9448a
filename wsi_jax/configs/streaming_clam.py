"""StreamingCLAM: a ResNet-34 over whole slides at 1 um/px, trained end to end.

    wsi-jax train --method streaming_clam --manifest my_slides.csv \
        --config.method.trunk.weights=resnet34.safetensors

For what is diffuse, or anywhere: one of the published tasks is a translocation of MYC
in lymphoma (Dooper et al. 2023). Where a label is all over the tissue a coarser look
may do: the published 0.5 um/px is four times the work. The schedule is that of the
published code, for 216 training slides: 25 epochs with the trunk as ImageNet left it,
then 10 with all of it, eight slides to an update. For others set `train.steps` and
`method.thaw.frozen`. On a device of 16 GB, as a TPU v5e, a large slide's seams must be
in host memory: `method.offload`.

    wsi-jax train --method streaming_clam:quick --manifest my_slides.csv

needs no weights: a small ConvNeXt at 2 um/px learns from nothing, in minutes.
"""

from wsi_jax.configs._quick import quick_train, small_trunk
from wsi_jax.methods.streaming_clam import Augment, StreamingCLAM
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import named_choice
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser, Thaw
from wsi_jax.types import Dtype

EPOCH = 216


def get_config(variant: str = "published") -> Experiment:
    return named_choice(variant, VARIANTS)()


def published() -> Experiment:
    return Experiment(
        grid=Grid(mpp=1.0, size_px=256, min_tissue=0.01),
        encoder=None,
        method=StreamingCLAM(
            trunk=Encoder(
                depth=Depth.resnet34, norm=NormKind.frozen, dtype=Dtype.bfloat16
            ),
            thaw=Thaw(frozen=25 * EPOCH, warmup=4 * EPOCH, slower=0.1),
        ),
        train=Train(
            steps=35 * EPOCH,
            batch=1,
            balanced=True,
            class_weights=False,
            validate_every=EPOCH,
            save_every=EPOCH // 4,
            optimiser=Optimiser(accumulate=8),
            patience=0,
        ),
    )


def quick() -> Experiment:
    return Experiment(
        grid=Grid(mpp=2.0, size_px=64, min_tissue=0.5),
        encoder=None,
        method=StreamingCLAM(
            trunk=small_trunk(),
            tile_px=512,
            pool=16,
            augment=Augment(probability=0.0),
            width=64,
            attention=32,
        ),
        train=quick_train(steps=200, batch=2, validate_every=25, save_every=50),
    )


VARIANTS = {"published": published, "quick": quick}
