import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from experiments.pretraining import sim_clr
from experiments.pretraining.augment import Augment
from experiments.pretraining.sim_clr import SimCLR
from wsi_jax import config_fields
from wsi_jax.nets.conv_encoder import ConvNeXtEncoder
from wsi_jax.nets.vit_encoder import Output, ViTEncoder
from wsi_jax.training.compile import compile_method, split
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Bag, Task

TASK = Task(("one", "other"))
nt_xent = jax.jit(sim_clr.nt_xent, static_argnames="temperature")
ONE = make_mesh(jax.devices()[:1])
VIT = ViTEncoder(
    width=8, depth=1, heads=2, hidden=8, patch=8, native_px=32, output=Output.mean
)


@pytest.fixture(scope="module")
def case():
    """A method, compiled, and its first state."""
    config = SimCLR(encoder=VIT, projection=8)
    (stage,) = config.stages(TASK, optax.adam(1e-2))
    compiled = compile_method(stage.method, ONE)
    return config, compiled, compiled.init(jax.random.key(0), split(tiles(), ONE))


def tiles(b=8) -> Bag:
    """Tiles of 32 px, the last two of which only fill the batch."""
    x = np.random.default_rng(0).integers(0, 256, (b, 32, 32, 3), np.uint8)
    real = np.arange(b) < b - 2
    return Bag(x, real[:, None], np.arange(b) % 2, real.astype(np.float32))


def step(case, bag):
    _, compiled, state = case
    return compiled.step(jax.tree.map(jnp.copy, state), split(bag, ONE))


def test_neither_labels_nor_what_fills_the_batch_are_seen(case):
    bag = tiles()
    x = bag.x.copy()
    x[6:] = 255
    (one, metrics), (two, again) = (
        step(case, b) for b in (bag, bag._replace(x=x, target=1 - bag.target))
    )
    assert metrics == again
    chex.assert_trees_all_equal(one.params, two.params)


def test_every_tile_of_the_batch_is_a_negative(case):
    """Before it has learnt, the loss of a tile grows with their number."""
    config, _, state = case
    (stage,) = config.stages(TASK, optax.identity())
    validate, bag = jax.jit(stage.validate), tiles()
    few = bag._replace(mask=(np.arange(8) < 3)[:, None])
    six, three = (
        validate(state.params, b, jax.random.key(1))["loss"] for b in (bag, few)
    )
    assert (six[:3] > three[:3]).all()
    assert (three[3:] == 0).all()


def test_a_prediction_is_the_features(case):
    config, compiled, state = case
    prediction = compiled.predict(state.params, split(tiles(), ONE), jax.random.key(1))
    apply = jax.jit(config.encoder.make().apply)
    features = apply(state.params["encoder"], tiles().x)
    np.testing.assert_allclose(
        prediction.logits[:6], features[:6], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(prediction.counts["tiles"], tiles().weight)
    assert (prediction.counts["flops"][:6] > 1e3).all()


def test_views_are_as_the_encoder_wants_them():
    """A whole number of patches of 8 px, nearest to the share asked for."""
    for share, side in ((0.6, 16), (0.7, 24), (0.05, 8), (1.0, 32)):
        config = SimCLR(encoder=VIT, augment=Augment(crop=share))
        view = lambda x, config=config: config.view(jax.random.key(0), x)
        assert jax.eval_shape(view, tiles().x).shape == (8, side, side, 3)


@pytest.mark.parametrize(
    "wrong", [{"projection": 0}, {"temperature": 0.0}, {"scales": ()}, {"scales": (0,)}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"method\.{next(iter(wrong))}="):
        config_fields.validate(SimCLR(**wrong))


def test_tiles_are_seen_at_several_magnifications():
    """Each view is a part: the whole at the coarsest, any place at the finest."""
    config = SimCLR(encoder=VIT, scales=(1, 4), projection=8)
    x = jnp.asarray(tiles(2).x)
    means = x.reshape(2, 8, 4, 8, 4, 3).mean((2, 4))
    coarse = config.part(jax.random.key(0), x, 4)
    np.testing.assert_allclose(coarse, means, atol=0.51)
    windows = np.lib.stride_tricks.sliding_window_view(x, (8, 8), (1, 2))
    windows = np.moveaxis(windows, 3, -1).reshape(2, 25 * 25, -1)
    places = set()
    for seed in range(8):
        fine = np.asarray(config.part(jax.random.key(seed), x, 1)).reshape(2, 1, -1)
        there = (windows == fine).all(-1)
        np.testing.assert_array_equal(there.sum(1), 1)
        places |= set(there.argmax(1).tolist())
    assert len(places) > 8


def test_each_magnification_is_compared_alone():
    """Tiles of one colour are alike at all: they know each other as well as at one."""
    still = Augment(crop=1.0, stain=0.0, shade=0.0)
    bag = tiles()
    flat = np.broadcast_to(bag.x[:, :1, :1], (8, 64, 64, 3))
    (stage,), (several,) = (
        SimCLR(encoder=VIT, projection=8, augment=still, scales=scales).stages(
            TASK, optax.identity()
        )
        for scales in ((1,), (1, 2))
    )
    params = jax.jit(stage.method.init)(jax.random.key(0), bag).params
    one, both = (
        jax.jit(one.validate)(params, bag._replace(x=x), jax.random.key(1))["loss"]
        for one, x in ((stage, flat[:, :32, :32]), (several, flat))
    )
    np.testing.assert_allclose(both, one, rtol=1e-5)


@pytest.mark.parametrize("encoder", [VIT, ConvNeXtEncoder(blocks=(1,), stem=8)])
def test_tiles_too_small_for_their_magnifications_are_refused(encoder):
    config = SimCLR(encoder=encoder, augment=Augment(crop=1.0), scales=(1, 4))
    config.check_tiles(32)
    with pytest.raises(ValueError, match="of tiles of 28 px 7 px are seen"):
        config.check_tiles(28)


def by_hand(views, mask, temperature):
    """Equation 1, one view against one view at a time."""
    each = [(i, v) for i in np.flatnonzero(mask) for v in range(2)]
    cosine = lambda p, q: p @ q / np.linalg.norm(p) / np.linalg.norm(q)
    losses, recognised = np.zeros((2, len(views)))
    for i, v in each:
        alike = {
            (j, w): np.exp(cosine(views[i, v], views[j, w]) / temperature)
            for j, w in each
            if (j, w) != (i, v)
        }
        losses[i] -= np.log(alike[i, 1 - v] / sum(alike.values())) / 2
        recognised[i] += (max(alike, key=alike.get) == (i, 1 - v)) / 2
    return losses, recognised


@pytest.fixture
def views():
    x = np.random.default_rng(0).normal(size=(5, 2, 4))
    x[:, 1] += x[:, 0]
    return x


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("present", [5, 3, 1])
def test_it_is_the_equation(views, present):
    mask = np.arange(5) < present
    losses, recognised = nt_xent(views, mask, temperature=0.5)
    expected = by_hand(views, mask, 0.5)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(recognised, expected[1])
    if present == 5:
        assert 0 < recognised.mean() < 1


@pytest.mark.usefixtures("x64")
def test_the_gradient_is_that_of_the_loss(views):
    mask = np.arange(5) < 4
    mean = lambda x: nt_xent(x, mask, temperature=0.2)[0].sum()
    check_grads(mean, (jnp.asarray(views),), 1, modes=["rev"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("junk", [np.nan, 9.0])
def test_what_is_no_tile_changes_neither_loss_nor_gradient(views, junk):
    mask = np.arange(5) < 4
    clean = np.float32(views)
    dirty = np.where(mask[:, None, None], clean, np.float32(junk))
    sum_ = lambda x: nt_xent(x, mask, temperature=0.1)[0].sum()
    (one, slope), (two, other) = map(jax.value_and_grad(sum_), (clean, dirty))
    assert one == two
    np.testing.assert_array_equal(slope, other)
    assert np.isfinite(other).all()
    assert not other[4].any()
