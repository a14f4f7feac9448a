"""A practice cohort of 60 slides, drawn in about a minute.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/practice.py \
        --config.preset=plain --config.out=cohorts/plain

Real tiles instead of drawn ones: `--config.tiles=FOLDER`, a folder with an index.csv.
"""

from experiments.phantoms.make_cohort import MakeCohort


def get_config() -> MakeCohort:
    return MakeCohort()
