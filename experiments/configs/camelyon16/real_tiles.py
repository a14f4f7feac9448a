"""Practice slides made of real tissue: a mosaic of real tiles, by one command.

    python -m experiments.camelyon16 \
        --config experiments/configs/camelyon16/real_tiles.py \
        --config.data.practice.tiles=FOLDER

FOLDER holds tiles by class and an index.csv (file, class, cluster), as LC25000 sorted
into clusters: normal slides of `colon_n`, lesions of `colon_aca`. Training and test
slides are made of different clusters. The lesions are visible at every scale: that
it works on real texture is what this shows, and no more.
"""

from experiments.camelyon16 import Camelyon16
from experiments.configs import demo
from experiments.phantoms.make_cohort import MakeCohort
from wsi_jax.run.config import Experiment


def get_config() -> Experiment:
    config = demo.get_config()
    practice = MakeCohort(n_train=44, n_val=16, n_test=48)
    config.data = Camelyon16(root="cohorts/real_tiles", practice=practice, val=0.27)
    return config
