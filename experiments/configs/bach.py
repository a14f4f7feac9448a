"""BACH by three methods, at its 0.42 um/px.

    python -m experiments.bach --config experiments/configs/bach.py:abmil \
        --config.data.root=ICIAR2018_BACH_Challenge \
        --config.encoder.weights=resnet50.safetensors

`abmil` takes every tile, 8 x 6 of 256 px to a field; none is background, as a
pathologist chose the fields. `attention_sampling` (16 crops of some 54) and
`attention_pooling` keep the images on the device, each training step one program; they
take `--config.method.trunk.weights`, the second `--config.method.scorer.weights` too.
Their crops, nets and schedules are ours, as is that a tile's score is 1 - p(normal).

Not measured here: the images are not at hand.
"""

from experiments.bach import Bach
from wsi_jax.configs import abmil as any_abmil
from wsi_jax.configs.attention_pooling import trunk
from wsi_jax.data.bach import MPP
from wsi_jax.methods.attention_pooling import AttentionPooling, Scoring
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.nets.crop_options import CropAugmentation
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import named_choice
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser, Thaw

EPOCH = 40  # of 320 images, eight at a time


def get_config(method: str = "abmil") -> Experiment:
    config = named_choice(method, VARIANTS)()
    config.data = Bach()
    return config


def abmil() -> Experiment:
    config = any_abmil.get_config()
    config.grid = Grid(mpp=MPP, size_px=256, min_tissue=0.0)
    config.train = Train(steps=3000, batch=8, validate_every=30, save_every=300)
    return config


def attention_sampling() -> Experiment:
    return Experiment(
        grid=Grid(mpp=8 * MPP, size_px=16, min_tissue=0.0),
        encoder=None,
        method=AttentionSampling(
            trunk=trunk(),
            mpps=(MPP, 2 * MPP, 4 * MPP),
            crop_px=224,
            crops=16,
            resident=True,
            augment=CropAugmentation(stain=0.1),
            thaw=Thaw(frozen=100),
        ),
        train=_train(),
    )


def attention_pooling() -> Experiment:
    scoring = Scoring(
        steps=20 * EPOCH,
        batch=8,
        validate_every=EPOCH,
        optimiser=Optimiser(learning_rate=1e-4),
        renew=EPOCH,
    )
    return Experiment(
        grid=Grid(mpp=8 * MPP, size_px=28, min_tissue=0.0),
        encoder=None,
        method=AttentionPooling(
            scorer=trunk(),
            trunk=trunk(),
            mpp=MPP,
            tile_px=224,
            best=12,
            worst=12,
            scoring=scoring,
            resident=True,
            augment=CropAugmentation(stain=0.1),
        ),
        train=_train(),
    )


def _train() -> Train:
    return Train(
        steps=50 * EPOCH,
        batch=8,
        class_weights=False,
        validate_every=EPOCH,
        save_every=5 * EPOCH,
        optimiser=Optimiser(learning_rate=1e-4),
    )


VARIANTS = {
    "abmil": abmil,
    "attention_pooling": attention_pooling,
    "attention_sampling": attention_sampling,
}
