"""Encoders from a folder of labelled tiles; one variant for each kind of encoder.

    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/tiles.py:lc25000 --config.tiles=FOLDER

`lc25000`: 2 um/px, from clusters of LC25000 that practice slides are never made of, so
that any practice cohort of the same folder may use it. For comparisons of encoders
only, from more tiles: `--config.part=train_and_encoder`.

`phantom`: 1 um/px. Nine tiles of ten are shown on the coarse look of another, as the
foci of a phantom are: an encoder of colour and density finds nothing in `fine_only`.

`overview_encoder`: 2 um/px, for crops of 32 px; as `phantom`, and small: a crop takes
below a millisecond on one core of a CPU.

`simclr`: 1 um/px, without labels, which serve a linear probe alone.
`--config.beside=encoder.safetensors` reports, on the same tiles, the probe of an
encoder trained with labels. Not measured at this length.

`vit_s`: a ViT-S/16 of 1 um/px from random weights, on tiles of 224 px; of other tiles
`--config.method.encoder.native_px` is to be their side, which 16 divides. The mean of
the patches' tokens (Beyer et al. 2022), branches that begin small (Touvron et al. 2021)
and a long rise of the rate suit few tiles. Not measured.

From tiles that are drawn, for practice cohorts of drawn tissue:

    python -m experiments.phantoms.make_tiles \
        --config experiments/configs/practice.py:tiles --config.out=tiles
    python -m experiments.pretraining.pretrain_tiles \
        --config experiments/configs/pretrain/tiles.py:drawn --config.tiles=tiles

`drawn`: as `phantom`, on fields of 38 px; at 4 um/px, where SASHA sees whole slides, it
tells the coarse look, which says where a zoom pays. `tile_encoder`: as `drawn`, and a
tile of 32 px takes a fifth of a millisecond on one core of a CPU.
"""

from experiments.pretraining.augment import Augment
from experiments.pretraining.pretrain_config import PretrainFolder
from experiments.pretraining.sim_clr import SimCLR
from experiments.pretraining.tile_classifier import TileClassifier
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.nets.vit_encoder import Output, ViTEncoder
from wsi_jax.run.config_file import named_choice
from wsi_jax.training.loop import Train
from wsi_jax.training.optimiser import Optimiser


def get_config(variant: str = "lc25000") -> PretrainFolder:
    return named_choice(variant, VARIANTS)()


def lc25000() -> PretrainFolder:
    return PretrainFolder(
        mpp=2.0,
        groups=(("colon_n", "colon_aca"), ("lung_n", "lung_aca", "lung_scc")),
        method=TileClassifier(encoder=Encoder(width=16, norm=NormKind.group)),
        train=train(5e-3, steps=1800, batch=32, every=150),
    )


def phantom() -> PretrainFolder:
    config = lc25000()
    config.mpp = 1.0
    config.method.augment = Augment(crop=0.5, borrow=0.9)
    config.train = train(5e-3, steps=4200, batch=32)
    return config


def overview_encoder() -> PretrainFolder:
    config = lc25000()
    config.method = TileClassifier(
        encoder=small_convnext(stem=4),
        augment=Augment(crop=0.3, borrow=0.8, borrow_px=4),
    )
    config.train = train(2e-3, steps=1800, batch=64, every=150, weight_decay=1e-3)
    return config


def drawn() -> PretrainFolder:
    config = phantom()
    config.groups = ()
    config.method.augment = Augment(crop=0.15, blur=1.0, borrow=0.9, borrow_px=8)
    config.method.coarser = 4
    config.train = train(5e-3, steps=600, batch=64)
    return config


def tile_encoder() -> PretrainFolder:
    config = drawn()
    config.method.encoder, config.method.coarser = small_convnext(stem=4), 1
    config.train = train(2e-3, steps=600, batch=64, weight_decay=1e-3)
    return config


def simclr() -> PretrainFolder:
    return PretrainFolder(
        method=SimCLR(encoder=lc25000().method.encoder),
        train=train(2e-3, steps=4200, batch=128, weight_decay=1e-3),
    )


def vit_s() -> PretrainFolder:
    encoder = ViTEncoder(layer_scale=0.1, output=Output.mean, native_px=224)
    return PretrainFolder(
        method=TileClassifier(encoder=encoder),
        train=train(3e-4, steps=20_000, batch=128, every=1000),
    )


def train(
    rate: float, *, steps: int, batch: int, every: int = 300, weight_decay: float = 0.05
) -> Train:
    """A training of fixed length, validated and saved every so many steps."""
    return Train(
        steps=steps,
        batch=batch,
        validate_every=every,
        save_every=every,
        patience=0,
        class_weights=False,
        optimiser=Optimiser(learning_rate=rate, weight_decay=weight_decay, warmup=0.1),
    )


def small_convnext(stem: int) -> ConvNeXtEncoder:
    """One block of 32 features; `stem` is the stride of the first layer, in pixels."""
    return ConvNeXtEncoder(
        blocks=(1,),
        width=32,
        stem=stem,
        scale=1.0,
        mean=(0.7, 0.55, 0.7),
        std=(0.2, 0.2, 0.2),
    )


VARIANTS = {
    "lc25000": lc25000,
    "phantom": phantom,
    "overview_encoder": overview_encoder,
    "simclr": simclr,
    "vit_s": vit_s,
    "drawn": drawn,
    "tile_encoder": tile_encoder,
}
