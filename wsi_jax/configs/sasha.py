"""SASHA: slides at 2 um/px (5x), of which a fifth is read at 0.5 um/px (20x).

    wsi-jax train --method sasha --manifest my_slides.csv \
        --config.encoder.weights=resnet50.safetensors

`--config.method.zoom_share=0.1` zooms into a tenth (SASHA-0.1). `sasha:paper` trains as
the authors' code does (2026): one slide a step, rewards that grow with what is left of
an episode, a critic without a clock, an unmasked new policy against a masked old one,
opposite rows that are alike, and an updater that learns from the row zoomed into.
Theirs and not here: branches compared by the wrong axis, a freeze once every tile was
like one seen, several updates of a row in on-the-fly inference.

`sasha:quick` needs no weights: features of a random encoder, from 4 um/px to 1 um/px,
and all three trainings in minutes.
"""

from wsi_jax.data.bags import Loading
from wsi_jax.methods.sasha import SASHA, HAFEDStage, PolicyStage, UpdaterStage
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.ops.advantages import Reward
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import named_choice
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser, Schedule

SLIDES = 242  # of the authors' training split of CAMELYON16: an epoch


def get_config(variant: str = "ours") -> Experiment:
    return named_choice(variant, VARIANTS)()


def ours() -> Experiment:
    return Experiment(
        grid=Grid(mpp=2.0, size_px=256),
        encoder=Encoder(depth=Depth.resnet50, stages=3, norm=NormKind.frozen),
        method=SASHA(standardise=True, policy=PolicyStage(init_from_ranking=True)),
        train=Train(balanced=True, class_weights=False),
    )


def paper() -> Experiment:
    config = ours()
    config.method, config.train.balanced = as_published(SLIDES), False
    return config


def quick() -> Experiment:
    def schedule(steps, rate=1e-3, **kwargs):
        optimiser = Optimiser(learning_rate=rate, weight_decay=1e-3, **kwargs)
        return {
            "steps": steps,
            "batch": 8,
            "validate_every": steps // 5,
            "optimiser": optimiser,
        }

    return Experiment(
        grid=Grid(mpp=4.0, size_px=32, min_tissue=0.5),
        encoder=Encoder(stages=3),
        method=SASHA(
            standardise=True,
            hafed=HAFEDStage(**schedule(200)),
            updater=UpdaterStage(min_cosine=0.5, **schedule(200)),
            policy=PolicyStage(
                init_from_ranking=True, episodes=4, **schedule(100, clip_norm=0.5)
            ),
        ),
        train=Train(balanced=True, class_weights=False, patience=0, save_every=50),
        loading=Loading(min_bucket=64),
    )


def as_published(slides: int) -> SASHA:
    """The method as the authors train it on so many slides."""

    def schedule(epochs, rate, decay, clip_norm=0.0, **kwargs):
        """One slide a step, without warm-up."""
        kwargs |= {"weight_decay": decay, "clip_norm": clip_norm}
        return {
            "steps": epochs * slides,
            "batch": 1,
            "validate_every": slides,
            "optimiser": Optimiser(learning_rate=rate, warmup=0.0, **kwargs),
        }

    return SASHA(
        hafed=HAFEDStage(**schedule(50, 4.14e-4, 1e-5)),
        updater=UpdaterStage(
            signed_cosine=False,
            anchors=1,
            include_self=True,
            **schedule(1000, 4e-5, 4e-4),
        ),
        policy=PolicyStage(
            critic_clock=False,
            reward=Reward.loss,
            mask_visited=False,
            **schedule(15, 1e-5, 1e-4, clip_norm=0.5, schedule=Schedule.constant),
        ),
    )


VARIANTS = {"ours": ours, "paper": paper, "quick": quick}
