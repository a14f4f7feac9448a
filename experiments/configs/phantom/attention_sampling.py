"""Crops of practice slides, chosen: which magnification tells, or where needles are.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/practice.py:phantom \
        --config.preset=fine_only --config.n_train=480 --config.n_val=40 \
        --config.n_test=40 --config.side_px=896 --config.suspect_share=0.12 \
        --config.out=cohorts/fine_only
    python -m experiments.cohort \
        --config experiments/configs/phantom/attention_sampling.py:magnifications \
        --config.data.manifest=cohorts/fine_only/slides.csv \
        --config.method.trunk.weights=runs/prepared_unlabelled/encoder.safetensors

One config and one encoder (`pretrain/prepared.py:unlabelled`) for `fine_only`, `mid`,
`coarse_only` and `null`. Crops see 8 um, 32 um and 768 um: the finest less than most
waves of `mid`, the middle ones less than the gutter between two blocks of
`coarse_only`. The encoder stays as it is, or attention goes to the magnification that
it learns first; so it does with few slides.

    python -m experiments.phantoms.make_cohort \
        --config experiments/configs/practice.py:phantom \
        --config.preset=needle --config.n_train=120 --config.n_val=40 \
        --config.styles=400 --config.out=cohorts/needle
    python -m experiments.cohort \
        --config experiments/configs/phantom/attention_sampling.py:needle \
        --config.data.manifest=cohorts/needle/slides.csv \
        --config.method.trunk.weights=encoder.safetensors

`needle`: a few crops of 32 um, where the overview is suspicious, by the encoder of
`pretrain/tiles.py:tile_encoder`, frozen. The head learns first, from crops from
anywhere, with several attentions, as one alone may settle on uninformative crops.
`--config.method.sampling.placement=UNIFORM` places crops by chance, and the variant
`every_tile` reads, pools and trains on all tiles that `needle` chooses from.
"""

from experiments.configs.phantom import balanced, end_to_end
from experiments.configs.pretrain import prepared, tiles
from wsi_jax.methods.attention_sampling import AttentionSampling, LossConfig
from wsi_jax.methods.patch_all import PatchAll
from wsi_jax.nets.crop_options import CropAugmentation, HeadConfig
from wsi_jax.nets.overview_attention import OverviewConfig
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import named_choice
from wsi_jax.slides.grid import Grid
from wsi_jax.training.optimiser import Thaw


def get_config(variant: str = "magnifications") -> Experiment:
    return named_choice(variant, VARIANTS)()


def magnifications() -> Experiment:
    method = AttentionSampling(
        trunk=prepared.unlabelled().method.encoder,
        trunk_rate=0.0,
        mpps=(1.0, 4.0, 96.0),
        crop_px=8,
        crops=192,
        overview=OverviewConfig(channels=8, layers=1),
        head=HeadConfig(
            width=32, deviation=True, unit_length=True, by_magnification=True
        ),
        loss=LossConfig(magnification_entropy=0.03, per_magnification=3.0),
        augment=CropAugmentation(stain=0.1),
        thaw=Thaw(frozen=100),
        resident=True,
    )
    grid = Grid(mpp=16.0, size_px=4, min_tissue=0.5)
    train = balanced(5e-3, steps=400, batch=16, validate_every=50, save_every=200)
    return end_to_end(method, grid, train)


def needle() -> Experiment:
    pretrained = tiles.tile_encoder()
    method = AttentionSampling(
        trunk=pretrained.method.encoder,
        mpps=(pretrained.mpp,),
        crop_px=32,
        crops=16,
        overview=OverviewConfig(channels=16, layers=1, relative=True),
        head=HeadConfig(width=128, attention_width=64, branches=8, centred=True),
        trunk_rate=0.0,
        thaw=Thaw(frozen=80),
        loss=LossConfig(entropy=0.0),
    )
    grid = Grid(mpp=16.0, size_px=2, min_tissue=0.5)
    train = balanced(3e-3, steps=240, batch=32, validate_every=25, save_every=100)
    return end_to_end(method, grid, train)


def every_tile() -> Experiment:
    config = needle()
    sampling = config.method
    config.method = PatchAll(
        trunk=sampling.trunk,
        mpp=sampling.mpps[0],
        tile_px=sampling.crop_px,
        trunk_rate=sampling.trunk_rate,
        head=sampling.head,
    )
    config.train.batch, config.train.steps = 8, 150
    config.train.validate_every = 50
    return config


VARIANTS = {
    "magnifications": magnifications,
    "needle": needle,
    "every_tile": every_tile,
}
