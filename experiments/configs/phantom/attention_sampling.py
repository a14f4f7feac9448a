"""A practice cohort, three magnifications: which of them tells is for the net to learn.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/phantom/cohort.py \
        --config.preset=fine_only --config.n_train=480 --config.n_val=40 \
        --config.n_test=40 --config.side_px=896 --config.suspect_share=0.12 \
        --config.out=cohorts/fine_only
    python -m experiments.cohort \
        --config experiments/configs/phantom/attention_sampling.py \
        --config.data.manifest=cohorts/fine_only/slides.csv \
        --config.method.trunk.weights=runs/unlabelled/encoder.safetensors

One config and one encoder, that of `pretrain/unlabelled.py`, for `fine_only`, `mid`,
`coarse_only` and `null`. Crops see 8 um, 32 um and 768 um: the finest less than most
waves of `mid`, the middle ones less than the gutter between two blocks of
`coarse_only`. There are many, as they are small. The encoder stays as it is: one that
has still to learn what is seen at a magnification draws attention to whichever it
learns first, or learns slides by heart. So does the head where slides are few: with 160
of `null` attention went to 768 um, where all crops are alike. `alone` makes what each
magnification says as weighty as if it were the only one; `spread` holds attention where
none says more.
"""

from experiments.configs.pretrain import unlabelled
from wsi_jax.data.tiles import Reading
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser, Thaw


def get_config() -> Experiment:
    return Experiment(
        data=Manifest(classes=("normal", "tumor")),
        grid=Grid(mpp=16.0, size_px=4, min_tissue=0.5),
        encoder=None,
        method=AttentionSampling(
            trunk=unlabelled.get_config().method.encoder,
            trunk_rate=0.0,
            mpps=(1.0, 4.0, 96.0),
            crop_px=8,
            crops=192,
            attention=8,
            layers=1,
            width=32,
            deviation=True,
            tells=True,
            spread=0.03,
            alone=3.0,
            stain=0.1,
            thaw=Thaw(frozen=100),
            resident=True,
        ),
        train=Train(
            steps=400,
            batch=16,
            balanced=True,
            class_weights=False,
            validate_every=50,
            save_every=200,
            patience=0,
            optimiser=Optimiser(learning_rate=5e-3, warmup=0.1, weight_decay=1e-3),
        ),
        reading=Reading(threads=4),
    )
