"""SASHA on a practice cohort as its authors' code trains it, beside our `sasha.py`.

    python -m experiments.cohort \
        --config experiments/configs/phantom/sasha_paper.py \
        --config.data.manifest=cohorts/needle/slides.csv \
        --config.features=FEATURES --config.encoder.weights=encoder.safetensors

Cohort, grid and encoder are those of `sasha.py`, whose features may be shared; all
else, cosines of features that are not standardised too, is as in
`camelyon16/sasha_paper.py`, which tells what of the authors' code is not here. An epoch
is that of a cohort with 120 training slides.
"""

from experiments.configs.camelyon16 import sasha_paper
from experiments.configs.phantom import sasha
from wsi_jax.run.config import Experiment

SLIDES = 120  # of a training split: an epoch


def get_config() -> Experiment:
    config = sasha.get_config()
    config.method, config.train.balanced = sasha_paper.published(SLIDES), False
    return config
