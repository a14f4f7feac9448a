"""StreamingCLAM: from tiles on disk as from images on the device, in every mode."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trunks import assert_same

from wsi_jax.methods.streaming_clam import Augment, Mode, StreamingCLAM
from wsi_jax.nets.encoder import ConvNeXtEncoder
from wsi_jax.nets.vit_encoder import ViTEncoder
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.ops.augment import rotate_flip
from wsi_jax.training.checkpoint import Checkpoints
from wsi_jax.training.compile import compile_method, make_mesh
from wsi_jax.training.optimiser import Thaw
from wsi_jax.types import Bag, Dtype, Task

TASK = Task(("normal", "tumor"))
ONE = make_mesh(jax.devices()[:1])
SIDE = 64


class Shown:
    """An image with its tissue, as `data.views.View` shows a slide."""

    def __init__(self, image, tissue):
        self.image, self.mask, self.read = image, tissue, 0
        self.shape = image.shape[:2]

    def rotated_shape(self, which=0):
        return self.shape[::-1] if which & 1 else self.shape

    def tissue(self, which=0):
        return self._turn(self.mask[..., None], which)[..., 0]

    def tiles(self, order, tile_px, which=0):
        image, (h, w) = self._turn(self.image, which), tile_px
        for r, c in order:
            self.read += 1
            found = image[r * h : (r + 1) * h, c * w : (c + 1) * w]
            rest = [(0, n - m) for n, m in zip(tile_px, found.shape[:2], strict=True)]
            yield np.pad(found, [*rest, (0, 0)])[None]

    def _turn(self, a, which):
        if not which:
            return a
        return np.asarray(rotate_flip(jnp.asarray(a)[None], jnp.array([which]))[0])


def config(dtype=Dtype.float32, **kw):
    trunk = ConvNeXtEncoder(blocks=(1,), width=4, stem=4, scale=0.5, dtype=dtype)
    small = {"tile_px": 16, "pool": 4, "width": 4, "attention": 3, "chunk": 64}
    return StreamingCLAM(trunk=trunk, **small | kw)


def images(side=SIDE, count=2):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    cells = -(-(side // 4) // 4)
    mask = rng.random((count, cells, cells)) < 0.3
    mask[:, 1, 1] = True
    label, weight = np.arange(count, dtype=np.int32) % 2, np.array([2.0, 1.0])
    return Bag(x, mask, label, weight[:count])


def shown(bag):
    views = tuple(map(Shown, bag.x, bag.mask))
    return bag._replace(x=views, mask=None)


def both(config, bag, steps=1):
    """State and metrics after some steps, of the pure form and of the staged one."""
    found = []
    for staged in (False, True):
        (stage,) = config.stages(TASK, optax.sgd(0.1), streamed=staged)
        method = compile_method(stage.method, ONE)
        batch = shown(bag) if staged else bag
        state = method.init(jax.random.key(0), batch)
        for _ in range(steps):
            state, metrics = method.step(state, batch)
        said = method.predict(
            found[0][0].params if found else state.params, batch, None
        )
        found.append((state, metrics, said))
    return found


CASES = {
    "as published": {},
    "masked": {"mode": Mode.masked, "normaliser": Normaliser.squared_average},
    "all, pooled at once, clustered": {
        "mode": Mode.every, "stream_pool": False, "instance_weight": 0.3, "sampled": 2,
        "multi_branch": True, "subtyping": True, "normaliser": Normaliser.sparsemax,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_staged_is_pure(x64, name):
    """Parameters after a step, loss and verdict: turned and recoloured alike."""
    pure, staged = both(config(Dtype.float64, **CASES[name]), images())
    # Parameters are float32 in either.
    chex.assert_trees_all_close(staged[0].params, pure[0].params, rtol=1e-5, atol=1e-7)
    for metric, value in pure[1].items():
        np.testing.assert_allclose(staged[1][metric], value, rtol=1e-6)
    assert_same(staged[2].logits, pure[2].logits)
    mask = images().mask.reshape(2, -1)
    for i, there in enumerate(mask):
        n = there.sum()
        assert staged[2].counts["tiles"][i] == n
        assert_same(staged[2].attention[i, :n], pure[2].attention[i][there])
        assert not staged[2].attention[i, n:].any()


def test_attention_is_that_of_the_normaliser():
    bag = images(48, 2)
    (stage,) = config(normaliser=Normaliser.average).stages(
        TASK, optax.sgd(0.1), streamed=False
    )
    state = stage.method.init(jax.random.key(0), bag)
    found = jax.jit(stage.method.predict)(state.params, bag, None)
    mask = bag.mask.reshape(2, -1)
    even = mask / mask.sum(-1, keepdims=True)
    np.testing.assert_allclose(found.attention, even, rtol=1e-6)


def test_a_sliver_too_narrow_for_the_map_is_masked():
    """Pooled with the map or behind it: no verdict comes from beyond the image."""
    image = images(96, 1).x[0][:82, :83]  # a sliver of 2 and of 3 px, and stem 4
    shown = Shown(image, np.ones((6, 6), bool))
    bag = Bag((shown,), None, np.zeros(1, np.int32), np.ones(1, np.float32))
    found = []
    for streams in (True, False):
        how = config(stream_pool=streams, augment=Augment(turn=False))
        (stage,) = how.stages(TASK, optax.sgd(0.1))
        params = stage.method.init(jax.random.key(0), bag).params
        found.append(stage.method.predict(params, bag, None))
    assert np.isfinite(found[0].logits).all()
    assert not found[0].attention.reshape(6, 6)[5].any()
    chex.assert_trees_all_close(found[0][:2], found[1][:2], rtol=1e-5, atol=1e-6)


def test_staged_learns_and_goes_on_as_if_never_stopped(tmp_path):
    bag = images(48, 2)
    x = bag.x.copy()
    x[1, 16:32, 16:32] = (255, 0, 0)
    batch = shown(bag._replace(x=x))
    (stage,) = config(augment=Augment(probability=0.0)).stages(TASK, optax.adam(3e-2))
    method = stage.method

    def steps(state, count):
        losses = []
        for _ in range(count):
            state, metrics = method.step(state, batch)
            losses.append(float(metrics["loss"]))
        return state, losses

    start = lambda: method.init(jax.random.key(0), batch)
    whole, losses = steps(start(), 40)
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) / 3
    half, _ = steps(start(), 15)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(15, half, {})
    checkpoints.close()
    found, _ = Checkpoints(tmp_path).restore(start())
    again, _ = steps(found, 25)
    chex.assert_trees_all_equal(again.params, whole.params)


def test_a_frozen_trunk_is_not_walked_back():
    bag = images(48, 1)
    views = shown(bag)
    (stage,) = config(thaw=Thaw(frozen=1)).stages(TASK, optax.sgd(0.1))
    state = stage.method.init(jax.random.key(0), views)
    before = jax.tree.map(jnp.copy, state.params["trunk"])
    state, _ = stage.method.step(state, views)
    once = views.x[0].read
    chex.assert_trees_all_equal(state.params["trunk"], before)
    state, _ = stage.method.step(state, views)
    assert views.x[0].read > 2 * once
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), state.params["trunk"], before
    )
    assert all(jax.tree.leaves(moved))


def test_a_trunk_that_attends_to_the_whole_slide_is_refused():
    trunk = ViTEncoder(width=8, depth=1, heads=2, hidden=16, native_px=64)
    with pytest.raises(ValueError, match=r"method\.trunk: a ViT attends to the whole"):
        StreamingCLAM(trunk=trunk).check(64)
