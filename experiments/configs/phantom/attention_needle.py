"""Needles in a practice cohort: a few crops of 32 um, where the overview is suspicious.

    python -m experiments.make_cohort --config experiments/configs/phantom/cohort.py \
        --config.preset=needle --config.n_val=40 --config.side_px=1280 \
        --config.suspect_share=0.12 --config.out=cohorts/needle
    python -m experiments.cohort \
        --config experiments/configs/phantom/attention_needle.py \
        --config.data.manifest=cohorts/needle/slides.csv \
        --config.method.trunk.weights=encoder.safetensors

The encoder is that of `pretrain/drawn.py`; all of it is trained on. `--config.method.
crops=64` reads more, `--config.method.look=UNIFORM` looks nowhere, and
`patch_needle.py` reads every tile.
"""

from experiments.configs.pretrain import drawn
from experiments.experiment import Experiment, Manifest
from wsi_jax.data.tiles import Reading
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.slides.grid import Grid
from wsi_jax.train.loop import Train
from wsi_jax.train.optimiser import Optimiser


def get_config() -> Experiment:
    pretrained = drawn.get_config()
    return Experiment(
        data=Manifest(classes=("normal", "tumor")),
        grid=Grid(mpp=16.0, size_px=4, min_tissue=0.5),
        encoder=None,
        method=AttentionSampling(
            trunk=pretrained.method.encoder,
            mpps=(pretrained.mpp,),
            crop_px=32,
            crops=16,
            attention=16,
            layers=1,
            width=128,
            resident=True,
        ),
        train=Train(
            steps=300,
            batch=16,
            balanced=True,
            class_weights=False,
            validate_every=50,
            save_every=100,
            patience=0,
            optimiser=Optimiser(learning_rate=1e-3, warmup=0.1, weight_decay=1e-3),
        ),
        reading=Reading(threads=4),
    )
