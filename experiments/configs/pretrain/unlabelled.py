"""An encoder of crops of 8 px at 1 and 4 um/px, from tissue of a practice cohort.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/phantom/cohort.py \
        --config.preset=mid --config.seed=4 --config.n_train=160 --config.n_val=40 \
        --config.n_test=40 --config.side_px=896 --config.suspect_share=0.12 \
        --config.out=cohorts/tissue
    python -m experiments.pretraining.prepare_tiles \
        --config experiments/configs/pretrain/prepare.py \
        --config.data.manifest=cohorts/tissue/slides.csv --config.grid.mpp=1 \
        --config.grid.size_px=64 --config.out=prepared
    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/unlabelled.py --config.tiles=prepared

For `phantom/attention_sampling.py`, which is to find the magnification that tells: both
are learnt alike, and no label is seen (SimCLR). Two views of a tile are crops of one
field of 16 px, so that they share its texture and little else.
"""

from experiments.pretraining.pretrain_tiles import PretrainPrepared
from experiments.pretraining.sim_clr import SimCLR
from wsi_jax.nets.encoder import ConvNeXtEncoder
from wsi_jax.training.augment import Augment
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def get_config() -> PretrainPrepared:
    return PretrainPrepared(
        mpp=1.0,
        method=SimCLR(
            encoder=ConvNeXtEncoder(
                blocks=(1,),
                width=32,
                stem=2,
                scale=1.0,
                mean=(0.7, 0.55, 0.7),
                std=(0.2, 0.2, 0.2),
            ),
            augment=Augment(crop=0.5, stain=0.3, shade=0.1),
            scales=(1, 4),
            deviation=True,
            projection=64,
            temperature=0.2,
        ),
        train=Train(
            steps=900,
            batch=256,
            validate_every=300,
            save_every=300,
            optimiser=Optimiser(learning_rate=3e-3, warmup=0.1, weight_decay=1e-3),
        ),
    )
