"""A practice cohort drawn, tiled, encoded, learnt and evaluated in a few minutes.

    python -m experiments.camelyon16 --config experiments/configs/demo.py

Lesions here are plain to see at every scale: a smoke test, never evidence. Of real
tissue, a mosaic of real tiles:

    python -m experiments.camelyon16 --config experiments/configs/demo.py:real_tiles \
        --config.data.practice.tiles=FOLDER

FOLDER holds tiles by class and an index.csv (file, class, cluster), as LC25000 sorted
into clusters: normal slides of `colon_n`, lesions of `colon_aca`. Training and test
slides are made of different clusters. That it works on real texture is what this shows,
and no more.
"""

from experiments.camelyon16 import Camelyon16
from experiments.phantoms.make_cohort import MakeCohort
from wsi_jax.configs import quick
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import named_choice
from wsi_jax.slides.grid import Grid


def get_config(tiles: str = "drawn_tiles") -> Experiment:
    config = quick.get_config()
    config.data = named_choice(tiles, VARIANTS)()
    config.grid = Grid(mpp=2.0, size_px=64, min_tissue=0.5)
    return config


def drawn_tiles() -> Camelyon16:
    practice = MakeCohort(styles=40)
    return Camelyon16(root="cohorts/demo", practice=practice, val=0.3)


def real_tiles() -> Camelyon16:
    practice = MakeCohort(n_train=44, n_val=16, n_test=48)
    return Camelyon16(root="cohorts/real_tiles", practice=practice, val=0.27)


VARIANTS = {"drawn_tiles": drawn_tiles, "real_tiles": real_tiles}
