"""A phantom cohort drawn, and every tile of it pooled by ABMIL.

    python -m experiments.camelyon16 --config experiments/configs/phantom/abmil.py \
        --config.data.practice.tiles=FOLDER --config.data.practice.preset=needle \
        --config.data.root=cohorts/needle --config.encoder.weights=encoder.safetensors

The encoder is that of `pretrain/phantom.py`, which has learnt from tiles of which no
phantom is made. For another seed, set it twice: `--config.data.practice.seed` draws
other slides, `--config.train.seed` other weights.
"""

from experiments.camelyon16 import Camelyon16
from experiments.configs.phantom import cohort
from experiments.configs.pretrain import phantom
from wsi_jax.methods.mil import ABMIL
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def get_config() -> Experiment:
    pretrained = phantom.get_config()
    return Experiment(
        data=Camelyon16(practice=cohort.get_config(), val=0.25),
        grid=Grid(mpp=pretrained.mpp, size_px=112, min_tissue=0.5),
        encoder=pretrained.method.encoder,
        method=ABMIL(width=128, attention=64, standardise=True),
        train=Train(
            steps=400,
            validate_every=20,
            save_every=100,
            optimiser=Optimiser(learning_rate=1e-3),
        ),
    )
