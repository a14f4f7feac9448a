"""A practice cohort seen at 4 um/px, and zooms to 1 um/px into a fifth of its tiles.

    python -m experiments.cohort --config experiments/configs/phantom/sasha.py \
        --config.data.manifest=cohorts/needle/slides.csv \
        --config.encoder.weights=encoder.safetensors

The encoder is that of `pretrain/drawn.py`; its tiles of 32 px show 32 um at 1 um/px
and 128 um at 4 um/px. The policy begins with the ranking and departs from it slowly:
begun with nothing it did not learn on every cohort. What other ways to choose as many
tiles say stands beside, in `metrics.json` and in the report.
"""

from experiments.configs.pretrain import drawn
from wsi_jax.data.bags import Loading
from wsi_jax.methods.sasha import SASHA
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import StageConfig, Train
from wsi_jax.training.optimiser import Optimiser
from wsi_jax.training.ppo import PPO


def get_config() -> Experiment:
    pretrained = drawn.get_config()
    return Experiment(
        data=Manifest(classes=("normal", "tumor")),
        grid=Grid(mpp=4 * pretrained.mpp, size_px=32, min_tissue=0.5),
        encoder=pretrained.method.encoder,
        method=SASHA(
            standardise=True,
            tau=0.5,
            warm=True,
            ppo=PPO(episodes=8),
            hafed=StageConfig(
                steps=200,
                batch=8,
                validate_every=50,
                optimiser=Optimiser(learning_rate=1e-3, weight_decay=1e-3),
            ),
            updater=StageConfig(
                steps=600,
                batch=8,
                validate_every=100,
                optimiser=Optimiser(learning_rate=1e-3, weight_decay=1e-3),
            ),
            policy=StageConfig(
                steps=400,
                batch=8,
                validate_every=50,
                optimiser=Optimiser(
                    learning_rate=1e-3, weight_decay=1e-4, clip_norm=0.5
                ),
            ),
        ),
        train=Train(balanced=True, class_weights=False, patience=0),
        loading=Loading(min_bucket=64),
    )
