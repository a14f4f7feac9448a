"""A small SASHA: its slides, stages, and the predictions of all of its strategies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from wsi_jax.methods.sasha import SASHA, HAFEDStage, PolicyStage, UpdaterStage
from wsi_jax.ops.zoom_strategies import STRATEGIES
from wsi_jax.training.compile import compile_method, split
from wsi_jax.training.mesh import make_mesh
from wsi_jax.training.optimiser import Optimiser
from wsi_jax.types import Bag, Task, TwoLevelFeatures

TASK = Task(("normal", "tumor", "other"))
ONE = make_mesh(jax.devices()[:1])
COUNTS = np.array([16, 16, 15, 12, 16, 9, 16, 0])
MASK = np.arange(16) < COUNTS[:, None]
NAMES = ("policy", "ranking", *STRATEGIES)
ZOOMING = tuple(name for name in NAMES if "resolution" not in name)
ADAM = Optimiser(learning_rate=1e-2, warmup=0.0)
CONFIG = SASHA(
    children=2,
    zoom_share=0.25,
    hafed=HAFEDStage(branches=(1, 2), mask_top=(2, 4), optimiser=ADAM),
    updater=UpdaterStage(min_cosine=0.8, optimiser=ADAM),
    policy=PolicyStage(episodes=4, epochs=2, chunk=5, optimiser=ADAM),
)
STEPS = np.ceil(0.25 * COUNTS).astype(int)


def config_with(**stages) -> SASHA:
    """The config with other fields of its stages."""
    parts = {n: dataclasses.replace(getattr(CONFIG, n), **f) for n, f in stages.items()}
    return dataclasses.replace(CONFIG, **parts)


def slides(seed=0) -> Bag:
    """Eight slides whose first four tiles are suspects at low resolution.

    Children of a suspect show the class, unless it is normal; other children nothing.
    The last slide only fills the batch.
    """
    rng = np.random.default_rng(seed)
    label = np.arange(8) % 3
    low, high = (0.3 * rng.normal(size=(8, 16, *more, 6)) for more in ((), (4,)))
    low[:, :4, 0] += 0.9
    for i, c in enumerate(label):
        high[i, :4, :, c] += 3 * (c > 0)
    x = TwoLevelFeatures(np.float32(low), np.float32(high))
    return Bag(x, MASK, label.astype(np.int32), np.float32(COUNTS > 0))


@functools.cache
def stages():
    """The stages by name, compiled."""
    return {
        stage.name: stage._replace(method=compile_method(stage.method, ONE))
        for stage in CONFIG.stages(TASK)
    }


@functools.cache
def state(stage="policy"):
    """The initial state; its weights are tripled so that a policy is not uniform."""
    first = stages()[stage].method.init(jax.random.key(0), split(slides(), ONE))
    params = jax.tree.map(lambda a: 3 * a, first.params)
    params["standardise"] = first.params["standardise"]
    return first._replace(params=params)


@functools.cache
def _predict_all():
    """One program for all strategies."""
    *_, ranking, policy = CONFIG.stages(TASK)
    methods = {one.name: one.method for one in (ranking, policy)} | policy.alternatives
    return jax.jit(
        lambda *x: {name: method.predict(*x) for name, method in methods.items()}
    )


def predictions(bag=None, params=None, key=0):
    """The prediction of every strategy, by its name."""
    params = state().params if params is None else params
    params = {"ranking": state("ranking").params["ranking"]} | params
    return jax.device_get(_predict_all()(params, bag or slides(), jax.random.key(key)))


def zoom_mask(prediction):
    """Mask of the tiles zoomed into, [b n]."""
    mask = np.zeros(MASK.shape, bool)
    for i, (order, steps) in enumerate(
        zip(prediction.trace["order"], prediction.trace["steps"], strict=True)
    ):
        mask[i, order[:steps]] = True
    return mask


def apply(net, params, *x, method=None):
    """A net on arrays of NumPy."""
    return jax.device_get(net.apply(params, *map(jnp.asarray, x), method=method))
