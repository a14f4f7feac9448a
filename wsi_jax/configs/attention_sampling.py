"""Attention sampling: an overview says where, and how magnified, to crop a slide.

    wsi-jax train --method attention_sampling --manifest my_slides.csv \
        --config.method.trunk.weights=resnet50.safetensors

By its compiler, a step on four slides of 20 mm fits a TPU v5e (16 GB).

After Zhang et al. 2021, whose crops, nets and schedule could not be had: those here are
ours. Crops weigh by what they show, too, in several attentions: without these needles
were not learnt on every practice cohort.

    wsi-jax train --method attention_sampling:quick --manifest my_slides.csv

needs no weights: a small ConvNeXt learns from nothing, in minutes.
"""

from wsi_jax.configs._quick import quick_train, small_trunk
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.crop_options import CropAugmentation, HeadConfig
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.overview_attention import OverviewConfig
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import named_choice
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser, Thaw
from wsi_jax.types import Dtype


def get_config(variant: str = "full") -> Experiment:
    return named_choice(variant, VARIANTS)()


def full() -> Experiment:
    return Experiment(
        grid=Grid(mpp=8.0, size_px=16, min_tissue=0.25),
        encoder=None,
        method=AttentionSampling(
            trunk=Encoder(
                depth=Depth.resnet50,
                stages=3,
                norm=NormKind.frozen,
                dtype=Dtype.bfloat16,
            ),
            mpps=(0.5, 1.0, 2.0),
            crop_px=224,
            crops=64,
            head=HeadConfig(unit_length=True, attention_width=128, branches=8),
            chunk=64,
            augment=CropAugmentation(stain=0.1),
            thaw=Thaw(frozen=500),
        ),
        train=Train(
            steps=10_000,
            batch=4,
            balanced=True,
            class_weights=False,
            validate_every=200,
            save_every=200,
            optimiser=Optimiser(learning_rate=1e-4),
        ),
    )


def quick() -> Experiment:
    return Experiment(
        grid=Grid(mpp=16.0, size_px=4, min_tissue=0.5),
        encoder=None,
        method=AttentionSampling(
            trunk=small_trunk(),
            mpps=(1.0, 2.0),
            crop_px=64,
            crops=16,
            overview=OverviewConfig(channels=8, layers=1),
            head=HeadConfig(unit_length=True, attention_width=32, branches=4),
            thaw=Thaw(frozen=60),
        ),
        train=quick_train(steps=200),
    )


VARIANTS = {"full": full, "quick": quick}
