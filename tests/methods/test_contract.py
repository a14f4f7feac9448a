"""What every method must do. A new one adds a line to one of the families.

A method of several stages is a case for each of them.
"""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.pretraining.augment import Augment
from experiments.pretraining.sim_clr import SimCLR
from wsi_jax.methods import mil
from wsi_jax.methods.attention_pooling import AttentionPooling, Scoring
from wsi_jax.methods.attention_sampling import AttentionSampling, LossConfig
from wsi_jax.methods.patch_all import PatchAll
from wsi_jax.methods.sasha import SASHA, HAFEDStage, PolicyStage, UpdaterStage
from wsi_jax.methods.streaming_clam import Augment as Lenses
from wsi_jax.methods.streaming_clam import StreamingCLAM
from wsi_jax.nets.crop_options import HeadConfig
from wsi_jax.nets.encoder import ConvNeXtEncoder
from wsi_jax.nets.overview_attention import OverviewConfig
from wsi_jax.nets.tile_pooling import PoolingHead
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.training.checkpoint import Checkpoints
from wsi_jax.training.compile import compile_method, make_mesh, replicate, split
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
    "abmil-squared": mil.ABMIL(
        **SMALL, attention=4, normaliser=Normaliser.squared_average
    ),
    "abmil-sparsemax": mil.ABMIL(**SMALL, attention=4, normaliser=Normaliser.sparsemax),
    "clam-sb": mil.CLAM(**SMALL, attention=4, sampled=2),
    "clam-mb": mil.CLAM(
        **SMALL, attention=4, sampled=2, multi_branch=True, subtyping=True
    ),
}
IMAGES = {
    "streaming-clam": StreamingCLAM(
        trunk=ConvNeXtEncoder(blocks=(1,), width=4, stem=4, scale=0.5),
        tile_px=32,
        pool=4,
        width=4,
        attention=3,
        augment=Lenses(turn=False, probability=0.0),
    )
}
TILES = {
    "sim-clr": SimCLR(
        encoder=ConvNeXtEncoder(blocks=(1,), width=8, stem=4, scale=0.5),
        augment=Augment(crop=0.75),
        projection=8,
    ),
    "sim-clr-magnifications": SimCLR(
        encoder=ConvNeXtEncoder(blocks=(1,), width=8, stem=4, scale=0.5),
        augment=Augment(crop=0.75),
        scales=(1, 2),
        deviation=True,
        projection=8,
    ),
}
# Stages with a course have optimisers of their own.
ADAM = Optimiser(learning_rate=1e-2, warmup=0.0, schedule=Schedule.constant)
POOLING = AttentionPooling(
    scorer=ConvNeXtEncoder(blocks=(1,), width=4, stem=4, scale=0.5),
    trunk=ConvNeXtEncoder(blocks=(1,), width=4, stem=4, scale=0.5),
    mpp=1.0,
    tile_px=16,
    best=2,
    worst=2,
    scoring=Scoring(optimiser=ADAM, tiles=1, renew=3, candidates=12, chunk=16),
    # Of width 4 the one best tile of a slide may stay the wrong one.
    head=PoolingHead(width=8, attention_width=3),
    chunk=16,
    resident=True,
)
CROPS = {
    "attention-sampling": AttentionSampling(
        trunk=ConvNeXtEncoder(blocks=(1,), width=4, stem=4, scale=0.5),
        mpps=(1.0, 2.0),
        crop_px=16,
        crops=6,
        overview=OverviewConfig(channels=4, layers=1),
        head=HeadConfig(width=8, unit_length=True),
        loss=LossConfig(entropy=0.0),
        resident=True,
    ),
    "patch-all": PatchAll(
        trunk=ConvNeXtEncoder(blocks=(1,), width=4, stem=4, scale=0.5),
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
STAGES = {
    f"{name}-{stage.name}": (name, i)
    for name, config in ZOOMS.items()
    for i, stage in enumerate(config.stages(TASK))
}
SEEN = {"mpp": 4.0, "cell_px": 4}  # of overviews
VIEWS = {
    f"{name}-{stage.name}": (name, i)
    for name, config in CROPS.items()
    for i, stage in enumerate(config.stages(TASK, optax.identity(), **SEEN))
}
WEIGHTS = np.array([0.75, 1.5])  # of slides of each class
ONE = make_mesh(jax.devices()[:1])


class Case(NamedTuple):
    """A method, as it is and compiled for one device: compiling is what costs.

    `tiles` are those that a verdict on each slide has looked at.
    """

    method: Method
    compiled: Compiled
    state: TrainState
    bag: Bag
    tiles: np.ndarray | None = None


@pytest.fixture(params=[*METHODS, *IMAGES, *TILES, *VIEWS, *STAGES])
def case(request) -> Case:
    return made(request.param)


@pytest.fixture(params=[*METHODS, *STAGES])
def pooled(request) -> Case:
    """Of features; images have no padding."""
    return made(request.param)


@functools.cache
def made(name) -> Case:
    if name in IMAGES:
        return case_of(IMAGES[name], images(), streamed=False)
    if name in TILES:
        return case_of(TILES[name], tiles())
    if name in VIEWS:
        name, i = VIEWS[name]
        return case_of(CROPS[name], overviews(), i, **SEEN)
    if name in STAGES:
        (name, i), bag = STAGES[name], zooms()
        return case_of(ZOOMS[name], bag, i, children_read(ZOOMS[name], i, bag.mask))
    return case_of(METHODS[name], bags(), tiles=bags().mask.sum(-1))


def case_of(config, bag, i=0, tiles=None, **form) -> Case:
    stage = config.stages(TASK, optax.adam(1e-2), **form)[i]
    compiled = compile_method(stage.method, ONE)
    state = compiled.init(jax.random.key(0), split(bag, ONE))
    return Case(stage.method, compiled, state, bag, tiles)


def children_read(config, i, mask):
    """And the tiles themselves: all, or of the last stages a share of the tiles'."""
    n = mask.sum(-1)
    zoomed = n if i < 2 else np.ceil(config.zoom_share * n - 1e-3)
    return n + config.children**2 * zoomed


def fresh(case, mesh):
    """A copy to donate."""
    return replicate(jax.tree.map(jnp.copy, case.state), mesh)


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
    """Tiles of three kinds, and what children tell of them.

    Of the bags above the slides, masks and labels; that a tile is the tumour's all of
    its children show, the tile itself does not.
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


def steps(compiled, state, mesh, count, bag):
    batch = split(bag, mesh)
    losses = []
    for _ in range(count):
        state, metrics = compiled.step(state, batch)
        losses.append(metrics["loss"])
    return state, np.asarray(losses)


def test_it_learns(case):
    _, losses = steps(case.compiled, fresh(case, ONE), ONE, 150, case.bag)
    # The last draws of crops may be ones without the crop that tells.
    assert np.median(losses[-30:]) < losses[:3].mean() / 3


def first_step(case, mesh, bag):
    """Loss and gradient of one step; Adam's first moment is a tenth of the gradient."""
    compiled = case.compiled if mesh is ONE else compile_method(case.method, mesh)
    state, losses = steps(compiled, fresh(case, mesh), mesh, 1, bag)
    adams = [s for s in jax.tree.leaves(state.opt, is_leaf=_has_mu) if _has_mu(s)]
    return losses, jax.device_get([adam.mu for adam in adams])


def _has_mu(state):
    return hasattr(state, "mu")


# One of each kind of step; that of features has a test in float64.
STEPS = (
    "streaming-clam",
    "sim-clr-magnifications",
    "attention-sampling-train",
    "attention-pooling-scorer",
    "attention-pooling-joint-joint",
    "sasha-updater",
    "sasha-policy",
)


@pytest.mark.parametrize("name", STEPS)
def test_one_device_is_eight(name):
    case = made(name)
    one, eight = (first_step(case, mesh, case.bag) for mesh in (ONE, make_mesh()))
    # A small gradient is a sum of terms near 1, which float32 rounds.
    chex.assert_trees_all_close(one, eight, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_one_device_is_eight_to_the_last_digit():
    config = mil.CLAM(**SMALL, attention=4, sampled=2, dtype=mil.Dtype.float64)
    bag = bags(np.float64)
    case = case_of(config, bag)
    one, eight = (first_step(case, mesh, bag) for mesh in (ONE, make_mesh()))
    chex.assert_trees_all_close(one, eight, rtol=1e-12, atol=1e-15)


def test_padding_is_invisible(pooled):
    """Junk behind the mask, NaN included, changes neither verdict nor training."""
    clean = pooled.bag
    there = lambda a: clean.mask.reshape(clean.mask.shape + (1,) * (a.ndim - 2))
    junk = lambda a: np.where(there(a), a, np.float32(np.nan))
    junk = clean._replace(x=jax.tree.map(junk, clean.x))
    key = jax.random.key(1)
    predict = lambda bag: jax.device_get(
        pooled.compiled.predict(pooled.state.params, split(bag, ONE), key)
    )
    chex.assert_trees_all_equal(predict(junk), predict(clean))
    trained = lambda bag: (
        steps(pooled.compiled, fresh(pooled, ONE), ONE, 2, bag)[0].params
    )
    chex.assert_trees_all_equal(trained(junk), trained(clean))

    attention = predict(clean).attention
    assert not attention[~clean.mask].any()
    np.testing.assert_allclose(attention[:6].sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(predict(clean).counts["tiles"], pooled.tiles)


def test_longer_padding_is_invisible(pooled):
    """A bag padded to twice its length gives the same verdict and attention."""
    bag, key = pooled.bag, jax.random.key(1)
    wide = lambda a: np.pad(a, [(0, 0), (0, 24)] + [(0, 0)] * (a.ndim - 2))
    longer = bag._replace(x=jax.tree.map(wide, bag.x), mask=wide(bag.mask))
    predict = lambda bag: pooled.compiled.predict(
        pooled.state.params, split(bag, ONE), key
    )._replace(trace=None)
    short, long = predict(bag), predict(longer)
    long = long._replace(attention=long.attention[:, :24])
    chex.assert_trees_all_close(long, short, rtol=1e-5, atol=1e-6)


def test_resumed_is_uninterrupted(case, tmp_path):
    whole, _ = steps(case.compiled, fresh(case, ONE), ONE, 3, case.bag)
    half, _ = steps(case.compiled, fresh(case, ONE), ONE, 1, case.bag)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, half, {"best": 0.5})
    checkpoints.close()
    restored, memory = Checkpoints(tmp_path).restore(fresh(case, ONE))
    assert memory == {"best": 0.5}
    assert int(restored.step) == 1
    resumed, _ = steps(case.compiled, restored, ONE, 2, case.bag)
    chex.assert_trees_all_equal(_comparable(resumed), _comparable(whole))


def _comparable(tree):
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, tree)
