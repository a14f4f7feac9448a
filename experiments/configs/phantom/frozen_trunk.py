"""What `streaming_clam.py` learns from nothing, its trunk left as drawn: CLAM-SB.

    python -m experiments.cohort --config experiments/configs/phantom/frozen_trunk.py \
        --config.data.manifest=cohorts/fine_only/slides.csv

The same cells and head, every cell a tile of the same random trunk.
"""

from experiments.configs.phantom import streaming_clam
from wsi_jax.methods.mil import CLAM
from wsi_jax.run.config import Experiment
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def get_config() -> Experiment:
    streamed = streaming_clam.get_config()
    return Experiment(
        data=streamed.data,
        grid=streamed.grid,
        encoder=streamed.method.trunk,
        method=CLAM(width=64, attention=32, standardise=True),
        train=Train(
            steps=400,
            validate_every=20,
            save_every=100,
            optimiser=Optimiser(learning_rate=1e-3),
        ),
    )
