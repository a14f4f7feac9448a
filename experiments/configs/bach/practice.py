"""A practice cohort in BACH's layout: 400 fields, 3.8 GB.

    python -m experiments.phantoms.make_bach \
        --config experiments/configs/bach/practice.py \
        --config.tiles=LC25000 --config.out=cohorts/bach

LC25000 is a folder of tiles by class with an index.csv (file, class, cluster); without
it the tiles are drawn. Then, as on BACH itself:

    python -m experiments.bach --config experiments/configs/bach/abmil.py \
        --config.data.root=cohorts/bach \
        --config.data.patients=cohorts/bach/patients.csv \
        --config.encoder.weights=resnet50.safetensors
"""

from experiments.phantoms.make_bach import MakeBach


def get_config() -> MakeBach:
    return MakeBach()
