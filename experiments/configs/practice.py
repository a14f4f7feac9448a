"""What practice cohorts and practice tiles are made of; one variant for each command.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/practice.py \
        --config.preset=plain --config.out=cohorts/plain

60 slides, drawn in about a minute. Real tiles instead of drawn ones:
`--config.tiles=FOLDER`, a folder of tiles by class with an index.csv (file, class,
cluster), as LC25000 sorted into clusters.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/practice.py:phantom \
        --config.tiles=FOLDER --config.preset=needle --config.out=cohorts/needle

240 slides of 3,000 px a side and more, whose signal is where the preset says; at .45 to
.5 um/px, as the tiles have 1. Then `experiments.phantoms.certify`.

    python -m experiments.phantoms.make_bach \
        --config experiments/configs/practice.py:bach \
        --config.tiles=LC25000 --config.out=cohorts/bach

BACH's layout: 400 fields, 3.8 GB. Then, as on BACH itself, `experiments.bach` with
`--config.data.root=cohorts/bach --config.data.patients=cohorts/bach/patients.csv`.

    python -m experiments.phantoms.make_tiles \
        --config experiments/configs/practice.py:tiles --config.out=tiles

Drawn tiles for the pre-training of encoders (`experiments/configs/pretrain`).
"""

from typing import Any

from experiments.phantoms.artefacts import Artefacts
from experiments.phantoms.make_bach import MakeBach
from experiments.phantoms.make_cohort import MakeCohort
from experiments.phantoms.make_tiles import MakeTiles
from wsi_jax.run.config_file import named_choice


def get_config(variant: str = "cohort") -> Any:
    return named_choice(variant, VARIANTS)()


def phantom() -> MakeCohort:
    return MakeCohort(
        side_px=1700,
        n_train=80,
        n_val=0,
        n_test=160,
        prevalence=0.5,
        suspect_share=0.3,
        artefacts=Artefacts(mpps=(0.452, 0.486, 0.5)),
    )


VARIANTS = {
    "cohort": MakeCohort,
    "phantom": phantom,
    "bach": MakeBach,
    "tiles": MakeTiles,
}
