"""ABMIL on random features: no weights needed, minutes on a laptop.

    wsi-jax train --method quick --manifest my_slides.csv

The same as `abmil:quick`; every method has a variant `quick`.
"""

from wsi_jax.configs import abmil
from wsi_jax.run.config import Experiment


def get_config() -> Experiment:
    return abmil.quick()
