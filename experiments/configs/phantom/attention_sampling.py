"""A practice cohort, three magnifications: which of them tells is for the net to learn.

    python -m experiments.make_cohort --config experiments/configs/phantom/cohort.py \
        --config.preset=fine_only --config.n_train=160 --config.n_val=40 \
        --config.n_test=40 --config.side_px=896 --config.suspect_share=0.12 \
        --config.out=cohorts/fine_only
    python -m experiments.cohort \
        --config experiments/configs/phantom/attention_sampling.py \
        --config.data.manifest=cohorts/fine_only/slides.csv

One config for `fine_only`, `mid`, `coarse_only` and `null`. Crops see 16 um, 64 um and
768 um: the finest less than the longest waves of `mid`, the middle ones less than the
gutter between two blocks of `coarse_only`. `alone` makes what each magnification says
as weighty as if it were the only one; `spread` holds attention where none says more.
"""

from experiments.experiment import Experiment, Manifest
from wsi_jax.data.tiles import Reading
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.nets.encoder import ConvNeXtEncoder
from wsi_jax.slides.grid import Grid
from wsi_jax.train.loop import Train
from wsi_jax.train.optimiser import Optimiser, Thaw


def get_config() -> Experiment:
    return Experiment(
        data=Manifest(classes=("normal", "tumor")),
        grid=Grid(mpp=16.0, size_px=4, min_tissue=0.5),
        encoder=None,
        method=AttentionSampling(
            trunk=ConvNeXtEncoder(
                blocks=(1,),
                width=32,
                stem=2,
                scale=1.0,
                mean=(0.7, 0.55, 0.7),
                std=(0.2, 0.2, 0.2),
            ),
            mpps=(1.0, 4.0, 48.0),
            crop_px=16,
            crops=24,
            attention=8,
            layers=1,
            width=128,
            deviation=True,
            tells=True,
            spread=0.03,
            alone=3.0,
            thaw=Thaw(frozen=200),
            resident=True,
        ),
        train=Train(
            steps=700,
            batch=16,
            balanced=True,
            class_weights=False,
            validate_every=100,
            save_every=200,
            patience=0,
            optimiser=Optimiser(learning_rate=5e-3, warmup=0.1, weight_decay=1e-3),
        ),
        reading=Reading(threads=4),
    )
