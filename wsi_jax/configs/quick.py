"""ABMIL on random features: no weights needed, minutes on a laptop.

    wsi-jax train --method quick --manifest my_slides.csv

A random encoder knows colour and texture and no tissue: this finds faults in a cohort
and gives a floor to compare with.
"""

from wsi_jax.methods.mil import ABMIL
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def get_config() -> Experiment:
    return Experiment(
        grid=Grid(mpp=1.0, size_px=128),
        encoder=Encoder(stages=3),
        method=ABMIL(width=128, attention=64, standardise=True),
        train=Train(
            steps=400,
            validate_every=20,
            save_every=20,
            optimiser=Optimiser(learning_rate=1e-3),
        ),
    )
