"""BACH: crops of images that lie on the device, each training step one program.

    python -m experiments.bach --config experiments/configs/bach/attention_sampling.py \
        --config.data.root=ICIAR2018_BACH_Challenge \
        --config.method.trunk.weights=resnet50.safetensors

After Zhang et al. 2021, whose crops, nets and schedule could not be had: those here are
ours. Sixteen crops of 224 px, of some 54 that an image of 2,048 x 1,536 px holds at
full resolution. Not measured here: the images are not at hand.
"""

from experiments.bach import Bach
from wsi_jax.data.bach import MPP
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.nets.encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser, Thaw
from wsi_jax.types import Dtype


def get_config() -> Experiment:
    return Experiment(
        data=Bach(),
        grid=Grid(mpp=8 * MPP, size_px=16, min_tissue=0.0),
        encoder=None,
        method=AttentionSampling(
            trunk=Encoder(
                depth=Depth.resnet50, norm=NormKind.frozen, dtype=Dtype.bfloat16
            ),
            mpps=(MPP, 2 * MPP, 4 * MPP),
            crop_px=224,
            crops=16,
            resident=True,
            stain=0.1,
            thaw=Thaw(frozen=100),
        ),
        train=Train(
            steps=2_000,
            batch=8,
            class_weights=False,
            validate_every=40,
            save_every=200,
            optimiser=Optimiser(learning_rate=1e-4),
        ),
    )
