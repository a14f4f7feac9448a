"""Encoders from the tiles that `experiments.pretraining.prepare_tiles` has written.

    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/prepared.py --config.tiles=prepared

Each tile has the label of its slide. Of a tumour slide most tiles have no tumour:
labels are weak, and the encoder is no better than they are. All tiles are held in
memory, as `most` allows. Not measured.

`prepared.py:unlabelled` sees no label (SimCLR): crops of 8 px at 1 and 4 um/px, from
tissue of a practice cohort, for `phantom/attention_sampling.py`. Two views of a tile
are crops of one field of 16 px, so that they share its texture and little else.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/practice.py:phantom \
        --config.preset=mid --config.seed=4 --config.n_train=160 --config.n_val=40 \
        --config.n_test=40 --config.side_px=896 --config.suspect_share=0.12 \
        --config.out=cohorts/tissue
    python -m experiments.pretraining.prepare_tiles \
        --config experiments/configs/pretrain/prepare_tiles.py \
        --config.data.manifest=cohorts/tissue/slides.csv --config.grid.mpp=1 \
        --config.grid.size_px=64 --config.out=prepared
    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/prepared.py:unlabelled \
        --config.tiles=prepared
"""

from experiments.configs.pretrain import patch_camelyon
from experiments.configs.pretrain.tiles import small_convnext
from experiments.pretraining.augment import Augment
from experiments.pretraining.pretrain_config import PretrainPrepared
from experiments.pretraining.sim_clr import SimCLR
from wsi_jax.run.config_file import named_choice
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def get_config(variant: str = "labelled") -> PretrainPrepared:
    return named_choice(variant, VARIANTS)()


def labelled() -> PretrainPrepared:
    config = patch_camelyon.get_config()
    config.train.steps, config.train.batch = 10_000, 128
    return PretrainPrepared(
        mpp=0.5, most=50_000, method=config.method, train=config.train
    )


def unlabelled() -> PretrainPrepared:
    return PretrainPrepared(
        mpp=1.0,
        method=SimCLR(
            encoder=small_convnext(stem=2),
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


VARIANTS = {"labelled": labelled, "unlabelled": unlabelled}
