"""A phantom cohort drawn, and every tile of it pooled: by ABMIL, or `mil.py:clam_sb`.

    python -m experiments.camelyon16 --config experiments/configs/phantom/mil.py \
        --config.data.practice.tiles=FOLDER --config.data.practice.preset=needle \
        --config.data.root=cohorts/needle --config.encoder.weights=encoder.safetensors

The encoder is that of `pretrain/tiles.py:phantom`, which has learnt from tiles of which
no phantom is made. For another seed, set it twice: `--config.data.practice.seed` draws
other slides, `--config.train.seed` other weights. A second method may have the features
of the first: `--config.features=runs/mil/features`.
"""

from experiments.camelyon16 import Camelyon16
from experiments.configs import practice
from experiments.configs.pretrain import tiles
from wsi_jax.methods.mil import ABMIL, CLAM
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import named_choice
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser

VARIANTS = {"abmil": ABMIL, "clam_sb": CLAM}


def get_config(method: str = "abmil") -> Experiment:
    pretrained = tiles.phantom()
    return Experiment(
        data=Camelyon16(practice=practice.phantom(), val=0.25),
        grid=Grid(mpp=pretrained.mpp, size_px=112, min_tissue=0.5),
        encoder=pretrained.method.encoder,
        method=named_choice(method, VARIANTS)(
            width=128, attention=64, standardise=True
        ),
        train=train_pool(),
    )


def train_pool() -> Train:
    """Of a pool on features."""
    optimiser = Optimiser(learning_rate=1e-3)
    return Train(steps=400, validate_every=20, save_every=100, optimiser=optimiser)
