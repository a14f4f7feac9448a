"""Needles in a practice cohort: a few crops of 32 um, where the overview is suspicious.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/phantom/cohort.py \
        --config.preset=needle --config.n_train=120 --config.n_val=40 \
        --config.styles=400 --config.out=cohorts/needle
    python -m experiments.cohort \
        --config experiments/configs/phantom/attention_needle.py \
        --config.data.manifest=cohorts/needle/slides.csv \
        --config.method.trunk.weights=encoder.safetensors

The encoder is that of `pretrain/detail.py`, and stays as it is: too few crops show a
lesion to learn from them what one looks like and where to look at once. Colours of the
overview are told from those of the slide's own tissue, and crops from the slide's other
crops: what a slide has throughout, such as its stain, tells nothing of its label. Crops
that show something weigh most, as in `patch_needle.py`; what to see in them is learnt
first, from crops from anywhere, and by several attentions, of which one alone often
settled on nothing.
`--config.method.crops=64` reads more, `--config.method.look=UNIFORM` looks nowhere, and
`patch_needle.py` reads every tile.
"""

from experiments.configs.pretrain import detail
from wsi_jax.data.tiles import Reading
from wsi_jax.methods.attention_sampling import AttentionSampling
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser, Thaw


def get_config() -> Experiment:
    pretrained = detail.get_config()
    return Experiment(
        data=Manifest(classes=("normal", "tumor")),
        grid=Grid(mpp=16.0, size_px=2, min_tissue=0.5),
        encoder=None,
        method=AttentionSampling(
            trunk=pretrained.method.encoder,
            mpps=(pretrained.mpp,),
            crop_px=32,
            crops=16,
            attention=16,
            layers=1,
            relative=True,
            width=128,
            unit=False,
            centred=True,
            gated=64,
            branches=8,
            trunk_rate=0.0,
            thaw=Thaw(frozen=80),
            entropy=0.0,
        ),
        train=Train(
            steps=240,
            batch=32,
            balanced=True,
            class_weights=False,
            validate_every=25,
            save_every=100,
            patience=0,
            optimiser=Optimiser(learning_rate=3e-3, warmup=0.1, weight_decay=1e-3),
        ),
        reading=Reading(threads=4),
    )
