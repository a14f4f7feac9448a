"""A practice cohort made, tiled, encoded, learnt and judged in a few minutes.

    python -m experiments.camelyon16 --config experiments/configs/demo.py

Lesions here are plain to see at every scale: a smoke test, never evidence.
"""

from experiments.camelyon16 import Camelyon16
from experiments.phantoms.make_cohort import MakeCohort
from wsi_jax.methods.mil import ABMIL
from wsi_jax.nets.encoder import Encoder
from wsi_jax.run.config import Experiment
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def get_config() -> Experiment:
    return Experiment(
        data=Camelyon16(root="cohorts/demo", practice=MakeCohort(styles=40), val=0.3),
        grid=Grid(mpp=2.0, size_px=64, min_tissue=0.5),
        encoder=Encoder(stages=3),
        method=ABMIL(width=128, attention=64, standardise=True),
        train=Train(
            steps=400,
            validate_every=20,
            save_every=20,
            optimiser=Optimiser(learning_rate=1e-3),
        ),
    )
