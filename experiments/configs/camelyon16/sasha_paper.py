"""SASHA as its authors' code trains it (2026), beside our repaired `sasha.py`.

    python -m experiments.camelyon16 \
        --config experiments/configs/camelyon16/sasha_paper.py \
        --config.data.root=CAMELYON16 --config.encoder.weights=ENCODER.safetensors

One slide a step, rewards that grow with what is left of an episode, a critic without a
clock, an unmasked new policy against a masked old one, opposite rows that are alike,
and an updater that learns from the row zoomed into. Theirs and not here: branches
compared by the wrong axis, a freeze once every tile was like one seen, several updates
of a row in on-the-fly inference. Not measured here: the slides are 700 GB.
"""

from experiments.configs.camelyon16 import sasha
from wsi_jax.methods.sasha import SASHA
from wsi_jax.ops.advantages import Reward
from wsi_jax.run.config import Experiment
from wsi_jax.training.loop import StageConfig
from wsi_jax.training.optimiser import Optimiser, Schedule
from wsi_jax.training.ppo import PPO

SLIDES = 242  # of the authors' training split: an epoch


def get_config() -> Experiment:
    config = sasha.get_config()
    config.method, config.train.balanced = published(SLIDES), False
    return config


def published(slides: int) -> SASHA:
    """The method as the authors train it on so many slides."""

    def course(epochs, rate, decay, clip_norm=0.0, **how):
        """One slide a step, without warm-up."""
        how |= {"weight_decay": decay, "clip_norm": clip_norm}
        return StageConfig(
            steps=epochs * slides,
            batch=1,
            validate_every=slides,
            optimiser=Optimiser(learning_rate=rate, warmup=0.0, **how),
        )

    return SASHA(
        signed=False,
        anchors=1,
        itself=True,
        clock=False,
        ppo=PPO(reward=Reward.loss, masked=False),
        hafed=course(50, 4.14e-4, 1e-5),
        updater=course(1000, 4e-5, 4e-4),
        policy=course(15, 1e-5, 1e-4, clip_norm=0.5, schedule=Schedule.constant),
    )
