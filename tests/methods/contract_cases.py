"""The contract's methods, in families that share a kind of batch, and their batches."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import optax

from experiments.pretraining.augment import Augment
from experiments.pretraining.sim_clr import SimCLR
from experiments.pretraining.tile_classifier import TileClassifier
from wsi_jax.methods import mil
from wsi_jax.methods.attention_pooling import AttentionPooling, Scoring
from wsi_jax.methods.attention_sampling import AttentionSampling, LossConfig
from wsi_jax.methods.patch_all import PatchAll
from wsi_jax.methods.sasha import SASHA, HAFEDStage, PolicyStage, UpdaterStage
from wsi_jax.methods.streaming_clam import Augment as ImageAugment
from wsi_jax.methods.streaming_clam import StreamingCLAM
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder, Encoder
from wsi_jax.nets.crop_options import HeadConfig
from wsi_jax.nets.overview_attention import OverviewConfig
from wsi_jax.nets.tile_pooling import PoolingHead
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.training.compile import compile_method, split
from wsi_jax.training.mesh import make_mesh
from wsi_jax.training.optimiser import Optimiser, Schedule
from wsi_jax.types import (
    Bag,
    Compiled,
    Method,
    Overviews,
    Task,
    TrainState,
    TwoLevelFeatures,
)

SMALL = {"width": 8, "dropout": 0.25, "chunk": 16}
METHODS = {
    "mean": mil.Mean(**SMALL),
    "max": mil.Max(**SMALL),
    "abmil": mil.ABMIL(**SMALL, attention=4),
    "abmil-sparsemax": mil.ABMIL(**SMALL, attention=4, normaliser=Normaliser.sparsemax),
    "clam-sb": mil.CLAM(**SMALL, attention=4, sampled=2),
    "clam-mb": mil.CLAM(
        **SMALL, attention=4, sampled=2, multi_branch=True, subtyping=True
    ),
}
IMAGES = {
    "streaming-clam": StreamingCLAM(
        trunk=Encoder(stages=1, width=4),
        tile_px=32,
        pool=4,
        width=4,
        attention=3,
        augment=ImageAugment(turn=False, probability=0.0),
    )
}
TRUNK = ConvNeXtEncoder(blocks=(1,), width=4, stem=4, scale=0.5)
ENCODER = dataclasses.replace(TRUNK, width=8)
TILES = {
    "sim-clr": SimCLR(encoder=ENCODER, augment=Augment(crop=0.75), projection=8),
    "sim-clr-magnifications": SimCLR(
        encoder=ENCODER,
        augment=Augment(crop=0.75),
        scales=(1, 2),
        deviation=True,
        projection=8,
    ),
    "tile-classifier": TileClassifier(encoder=ENCODER, augment=Augment(crop=0.75)),
}
# Stages with steps of their own have optimisers of their own.
ADAM = Optimiser(learning_rate=1e-2, warmup=0.0, schedule=Schedule.constant)
POOLING = AttentionPooling(
    scorer=TRUNK,
    trunk=TRUNK,
    mpp=1.0,
    tile_px=16,
    best=2,
    worst=2,
    scoring=Scoring(optimiser=ADAM, tiles=1, renew=3, candidates=12, chunk=16),
    # At width 4 the one best tile of a slide may stay the wrong one.
    head=PoolingHead(width=8, attention_width=3),
    chunk=16,
    resident=True,
)
CROPS = {
    "attention-sampling": AttentionSampling(
        trunk=TRUNK,
        mpps=(1.0, 2.0),
        crop_px=16,
        crops=6,
        overview=OverviewConfig(channels=4, layers=1),
        head=HeadConfig(width=8, unit_length=True),
        loss=LossConfig(entropy=0.0),
        resident=True,
    ),
    "patch-all": PatchAll(
        trunk=TRUNK,
        mpp=1.0,
        tile_px=16,
        head=HeadConfig(width=4, attention_width=3),
        resident=True,
    ),
    "attention-pooling": POOLING,
    "attention-pooling-joint": dataclasses.replace(POOLING, joint=True),
}
ZOOMS = {
    "sasha": SASHA(
        children=2,
        zoom_share=0.2,
        hafed=HAFEDStage(
            branches=(2, 2), mask_top=(4, 4), mask_rate=0.25, optimiser=ADAM
        ),
        updater=UpdaterStage(min_cosine=0.8, optimiser=ADAM),
        policy=PolicyStage(steps=2000, batch=4, epochs=1, chunk=6, optimiser=ADAM),
    )
}
TASK = Task(("normal", "tumor"))
ZOOM_STAGES = {
    f"{name}-{stage.name}": (name, i)
    for name, config in ZOOMS.items()
    for i, stage in enumerate(config.stages(TASK))
}
OVERVIEW = {"mpp": 4.0, "cell_px": 4}
CROP_STAGES = {
    f"{name}-{stage.name}": (name, i)
    for name, config in CROPS.items()
    for i, stage in enumerate(config.stages(TASK, optax.identity(), **OVERVIEW))
}
WEIGHTS = np.array([0.75, 1.5])  # of slides of each class
ONE = make_mesh(jax.devices()[:1])


class Case(NamedTuple):
    """A method, as it is and compiled for one device: compiling is what costs.

    `tiles` counts those that a prediction of each slide rests on.
    """

    method: Method
    compiled: Compiled
    state: TrainState
    bag: Bag
    tiles: np.ndarray | None = None


@functools.cache
def make_case(name) -> Case:
    if name in IMAGES:
        return compiled_case(IMAGES[name], images(), streamed=False)
    if name in TILES:
        return compiled_case(TILES[name], tiles())
    if name in CROP_STAGES:
        name, i = CROP_STAGES[name]
        return compiled_case(CROPS[name], overviews(), i, **OVERVIEW)
    if name in ZOOM_STAGES:
        (name, i), bag = ZOOM_STAGES[name], zooms()
        return compiled_case(ZOOMS[name], bag, i, tiles_read(ZOOMS[name], i, bag.mask))
    return compiled_case(METHODS[name], bags(), tiles=bags().mask.sum(-1))


def compiled_case(config, bag, i=0, tiles=None, **form) -> Case:
    stage = config.stages(TASK, optax.adam(1e-2), **form)[i]
    compiled = compile_method(stage.method, ONE)
    state = compiled.init(jax.random.key(0), split(bag, ONE))
    return Case(stage.method, compiled, state, bag, tiles)


def tiles_read(config, i, mask):
    """Tiles and children read per slide; later stages zoom into a share of them."""
    n = mask.sum(-1)
    zoom_count = n if i < 2 else np.ceil(config.zoom_share * n - 1e-3)
    return n + config.children**2 * zoom_count


def bags(dtype=np.float32) -> Bag:
    """Eight slides of 24 tiles or fewer; a tumour slide has one tile that shows it.

    The last two only fill the batch.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 24, 6)).astype(dtype)
    label = np.arange(8) % 2
    x[label == 1, 3] += 4
    mask = np.arange(24) < rng.integers(8, 25, 8)[:, None]
    weight = np.where(np.arange(8) < 6, WEIGHTS[label], 0).astype(dtype)
    mask[weight == 0] = False
    return Bag(x, mask, label.astype(np.int32), weight)


def zooms() -> Bag:
    """Tiles of three kinds with children, for the slides, masks and labels of `bags`.

    A tile of tumour is shown by all of its children, not by the tile itself.
    """
    bag, rng = bags(), np.random.default_rng(1)
    b, n, d = bag.x.shape
    kind = 2 * rng.normal(size=(3, d))[rng.integers(3, size=(b, n))]
    low = kind + 0.3 * rng.normal(size=kind.shape)
    high = 0.5 * kind[:, :, None] + 0.1 * rng.normal(size=(b, n, 4, d))
    high[bag.target == 1, 3] += 3
    return bag._replace(x=TwoLevelFeatures(np.float32(low), np.float32(high)))


def images() -> Bag:
    """Eight images of 4 x 4 cells; a tumour has one that shows it, in red.

    The last two only fill the batch.
    """
    rng = np.random.default_rng(0)
    x = rng.integers(100, 156, (8, 64, 64, 3), np.uint8)
    mask = rng.random((8, 4, 4)) < 0.3
    mask[:, 1, 2] = True
    label = np.arange(8) % 2
    weight = np.where(np.arange(8) < 6, WEIGHTS[label], 0)
    x[label == 1, 16:32, 32:48] = (255, 0, 0)
    mask[weight == 0] = False
    return Bag(x, mask, label.astype(np.int32), weight.astype(np.float32))


def tiles() -> Bag:
    """Eight tiles, each of a colour of its own; the last two only fill the batch."""
    rng = np.random.default_rng(0)
    x = rng.integers(20, 200, (8, 1, 1, 3)) + rng.integers(0, 56, (8, 16, 16, 1))
    label, real = np.zeros(8, np.int32), np.arange(8) < 6
    return Bag(x.astype(np.uint8), real[:, None], label, real.astype(np.float32))


def overviews() -> Bag:
    """The images again: their overviews, and planes of two magnifications."""
    bag = images()
    b, side = bag.x.shape[:2]
    coarser = lambda k: (
        bag.x.reshape(b, side // k, k, side // k, k, 3).mean((2, 4)).astype(np.uint8)
    )
    white = np.full((b, 3), 255, np.uint8)
    x = Overviews(coarser(4), white, planes=(bag.x, coarser(2)))
    return bag._replace(x=x)
