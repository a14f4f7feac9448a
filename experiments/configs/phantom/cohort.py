"""A phantom: practice slides of real tissue whose signal is where the preset says.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/phantom/cohort.py \
        --config.tiles=FOLDER --config.preset=needle --config.out=cohorts/needle
    python -m experiments.phantoms.certify --cohort cohorts/needle

FOLDER holds tiles by class and an index.csv (file, class, cluster), as LC25000 sorted
into clusters. 240 slides of 3,000 px a side and more, 80 test slides of either class.
The tiles have 1 um/px; scanned at .45 to .5 they lose nothing, and at .25 would gain
nothing and take four times as long.
"""

from experiments.phantoms.artefacts import Nuisance
from experiments.phantoms.make_cohort import MakeCohort


def get_config() -> MakeCohort:
    return MakeCohort(
        side_px=1700,
        n_train=80,
        n_val=0,
        n_test=160,
        prevalence=0.5,
        suspect_share=0.3,
        nuisance=Nuisance(mpps=(0.452, 0.486, 0.5)),
    )
