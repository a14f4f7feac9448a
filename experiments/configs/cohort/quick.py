"""Your own slides and labels without weights at hand: ABMIL on random features.

    python -m experiments.cohort --config experiments/configs/cohort/quick.py \
        --config.data.manifest=my_slides.csv

Minutes on a laptop. A random encoder knows colour and texture and no tissue: this
finds faults in a cohort and gives a floor to compare with.
"""

from experiments.configs import demo
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.slides.grid import Grid


def get_config() -> Experiment:
    config = demo.get_config()
    config.data = Manifest()
    config.grid = Grid(mpp=1.0, size_px=128)
    return config
