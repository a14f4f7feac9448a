"""A practice cohort, whole slides: a small ConvNeXt at 0.5 um/px, from random weights.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/phantom/cohort.py \
        --config.preset=fine_only --config.n_train=40 --config.n_val=20 \
        --config.out=cohorts/fine_only
    python -m experiments.cohort \
        --config experiments/configs/phantom/streaming_clam.py \
        --config.data.manifest=cohorts/fine_only/slides.csv

For another seed, set it twice: `--config.seed` of the cohort draws other slides,
`--config.train.seed` other weights.
"""

from wsi_jax.methods.streaming_clam import Augment, StreamingCLAM
from wsi_jax.nets.encoder import ConvNeXtEncoder
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser

EPOCH = 20  # of 40 slides, two to a batch: one of each class


def get_config() -> Experiment:
    return Experiment(
        data=Manifest(classes=("normal", "tumor")),
        grid=Grid(mpp=0.5, size_px=256, min_tissue=0.5),
        encoder=None,
        method=StreamingCLAM(
            trunk=ConvNeXtEncoder(
                blocks=(1,),
                width=32,
                stem=8,
                scale=1.0,
                mean=(0.7, 0.55, 0.7),
                std=(0.2, 0.2, 0.2),
            ),
            tile_px=256,
            pool=32,
            augment=Augment(hue=0.0, saturation=0.0, value=0.0),
            width=64,
            attention=32,
        ),
        train=Train(
            steps=8 * EPOCH,
            batch=2,
            balanced=True,
            class_weights=False,
            validate_every=EPOCH,
            save_every=EPOCH,
            patience=0,
            optimiser=Optimiser(learning_rate=2e-3, warmup=0.1, weight_decay=1e-3),
        ),
    )
