"""SASHA on a practice cohort at 4 um/px, of which a fifth is read at 1 um/px.

    python -m experiments.cohort --config experiments/configs/phantom/sasha.py \
        --config.data.manifest=cohorts/needle/slides.csv \
        --config.encoder.weights=encoder.safetensors

The encoder is that of `pretrain/tiles.py:drawn`. The policy begins with the ranking and
departs from it slowly: begun with nothing it did not learn on every cohort.
`sasha.py:paper` trains as its authors' code does (`wsi_jax/configs/sasha.py`), on
features that are not standardised.
"""

from experiments.configs.pretrain import tiles
from wsi_jax.configs.sasha import as_published
from wsi_jax.data.bags import Loading
from wsi_jax.methods.sasha import SASHA, HAFEDStage, PolicyStage, UpdaterStage
from wsi_jax.run.config import Experiment, Manifest
from wsi_jax.run.config_file import named_choice
from wsi_jax.slides.grid import Grid
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser

SLIDES = 120  # of the training split of a cohort: an epoch


def get_config(variant: str = "ours") -> Experiment:
    return named_choice(variant, VARIANTS)()


def ours() -> Experiment:
    pretrained = tiles.drawn()
    return Experiment(
        data=Manifest(classes=("normal", "tumor")),
        grid=Grid(mpp=4 * pretrained.mpp, size_px=32, min_tissue=0.5),
        encoder=pretrained.method.encoder,
        method=SASHA(
            standardise=True,
            hafed=HAFEDStage(**stage(200, 50), optimiser=optimiser(1e-3)),
            updater=UpdaterStage(
                **stage(600, 100), min_cosine=0.5, optimiser=optimiser(1e-3)
            ),
            policy=PolicyStage(
                **stage(400, 50),
                init_from_ranking=True,
                episodes=8,
                optimiser=optimiser(1e-4, clip_norm=0.5),
            ),
        ),
        train=Train(balanced=True, class_weights=False, patience=0),
        loading=Loading(min_bucket=64),
    )


def stage(steps: int, validate_every: int) -> dict[str, int]:
    """Length of a stage."""
    return {"steps": steps, "batch": 8, "validate_every": validate_every}


def optimiser(weight_decay: float, **options: float) -> Optimiser:
    """Of all stages, but for the decay."""
    return Optimiser(learning_rate=1e-3, weight_decay=weight_decay, **options)


def paper() -> Experiment:
    config = ours()
    config.method, config.train.balanced = as_published(SLIDES), False
    return config


VARIANTS = {"ours": ours, "paper": paper}
