"""Attention over places and magnifications, of which a prediction reads a few crops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from crop_slides import CELL, MPP, TASK, batch, method, reader, write_slides

from wsi_jax import config_fields
from wsi_jax.nets.crop_sampler import Inference, Layout, Placement
from wsi_jax.ops.sampling import Estimator
from wsi_jax.training.compile import compile_method
from wsi_jax.training.mesh import make_mesh
from wsi_jax.types import Overviews


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    return write_slides(tmp_path_factory.mktemp("slides"))


def compiled(slides, **fields):
    config = method(resident=True, **fields)
    (stage,) = config.stages(TASK, optax.sgd(0.1), MPP, CELL)
    bag = jax.tree.map(jnp.asarray, batch(reader(config), slides))
    method_of = lambda made: compile_method(made, make_mesh(jax.devices()[:1]))
    others = {name: method_of(other) for name, other in stage.alternatives.items()}
    return stage._replace(method=method_of(stage.method), alternatives=others), bag


def resident(slides, **fields):
    stage, bag = compiled(slides, **fields)
    return stage, stage.method.init(jax.random.key(0), bag), bag


@pytest.fixture(scope="module")
def plain(slides):
    return resident(slides)


def test_unread_pixels_never_change_a_prediction(plain):
    """Bit by bit, with the overview as it is: only crops are ratios in full."""
    stage, state, bag = plain
    predict = stage.method.predict
    before = predict(state.params, bag, jax.random.key(0))
    planes = [np.full(plane.shape, 13, np.uint8) for plane in bag.x.planes]
    trace = jax.device_get(before.trace)
    for b, k in zip(*np.nonzero(trace["read"]), strict=True):
        which, (y, x) = trace["which"][b, k], trace["yx"][b, k]
        at = slice(max(y, 0), y + 16), slice(max(x, 0), x + 16)
        planes[which][b][at] = np.asarray(bag.x.planes[which])[b][at]
    assert any(
        (new != np.asarray(old)).mean() > 0.3
        for new, old in zip(planes, bag.x.planes, strict=True)
    )
    unread = bag._replace(x=bag.x._replace(planes=tuple(map(jnp.asarray, planes))))
    after = predict(state.params, unread, jax.random.key(0))
    np.testing.assert_array_equal(before.logits, after.logits)
    assert set(stage.alternatives) == {"top"}
    top = stage.alternatives["top"].predict(state.params, bag, jax.random.key(0))
    np.testing.assert_allclose(top.trace["weight"][:3].sum(1), 1, rtol=1e-5)
    black = [jnp.zeros_like(plane) for plane in bag.x.planes]
    read = bag._replace(x=bag.x._replace(planes=tuple(black)))
    other = predict(state.params, read, jax.random.key(0))
    assert (np.asarray(other.logits) != np.asarray(before.logits)).any()


def test_glass_and_padding_are_not_seen(plain):
    """Neither in overviews, nor as longer batches."""
    config = method()
    stage, state, bag = plain
    fine = np.asarray(bag.mask).repeat(CELL, 1).repeat(CELL, 2)[..., None]
    junk = np.where(fine, bag.x.overview, 77).astype(np.uint8)
    wide = lambda a, k: np.pad(
        np.asarray(a), [(0, 0), (0, 8 * k), (0, 4 * k)] + [(0, 0)] * (a.ndim - 3)
    )
    longer = Overviews(
        jnp.asarray(wide(junk, CELL)),
        bag.x.background,
        tuple(
            jnp.asarray(wide(plane, 32 // round(mpp)))
            for plane, mpp in zip(bag.x.planes, config.mpps, strict=True)
        ),
    )
    longer = bag._replace(x=longer, mask=jnp.asarray(wide(bag.mask, 1)))
    attend = lambda bag: stage.method.predict(state.params, bag, jax.random.key(0))
    short, long = attend(bag), attend(longer)
    n = short.attention.shape[1]
    np.testing.assert_allclose(long.attention[:, :n], short.attention, atol=1e-6)
    assert not np.asarray(long.attention[:, n:]).any()


@pytest.mark.parametrize("layout", list(Layout))
def test_at_first_all_magnifications_are_alike(slides, layout):
    stage, state, bag = resident(
        slides, sampling={"layout": layout}, mpps=(1.0, 2.0, 4.0)
    )
    _, metrics = stage.method.step(state, bag)
    mass = [float(v) for name, v in metrics.items() if name.startswith("mass")]
    np.testing.assert_allclose(mass, 1 / 3, atol=0.02)


@pytest.mark.parametrize(
    ("inference", "gate"),
    [(Inference.sampled, {"attention_width": 3, "branches": 2}), (Inference.top, {})],
)
def test_a_prediction_on_few_cells_is_the_exact_one(slides, inference, gate):
    """Where no more cells count than are drawn, every estimator and inference agree."""
    exact = {"estimator": Estimator.full, "inference": Inference.sampled, "draws": 1}
    chosen = {"inference": inference, "draws": 1}
    logits, many = [], {"head": gate, "crops": 256}
    _, state, _ = resident(slides, sampling=chosen, **many)
    for sampling in (exact, chosen):
        stage, bag = compiled(slides, sampling=sampling, **many)
        prediction = stage.method.predict(state.params, bag, jax.random.key(3))
        logits.append(prediction.logits)
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


def test_draws_are_averaged(slides, plain):
    """More of them come nearer to the expectation."""
    _, state, bag = plain
    stage, _ = compiled(slides, sampling={"estimator": Estimator.full})
    exact = stage.method.predict(state.params, bag, jax.random.key(0)).logits[:3]
    gaps = []
    for draws in (1, 16):
        stage, _ = compiled(slides, sampling={"draws": draws})
        errors = [
            stage.method.predict(state.params, bag, jax.random.key(i)).logits[:3]
            - exact
            for i in range(8)
        ]
        gaps.append(np.square(errors).mean())
    assert gaps[1] < gaps[0] / 6


def test_the_attention_on_crops_is_trained(slides):
    part = lambda state: state.params["head"]["params"]["attention"]
    gate, loss = {"attention_width": 3}, {"per_magnification": 1.0}
    stage, state, bag = resident(slides, head=gate, loss=loss)
    before = jax.device_get(part(state))
    after = part(stage.method.step(state, bag)[0])
    assert (after["logits"]["kernel"] != before["logits"]["kernel"]).any()


def test_uniform_placement_has_no_attention_net(slides):
    stage, state, bag = resident(slides, sampling={"placement": Placement.uniform})
    assert "look" not in state.params
    prediction = stage.method.predict(state.params, bag, jax.random.key(0))
    n = np.asarray(bag.mask).sum((1, 2))
    np.testing.assert_allclose(prediction.attention[0, : n[0]], 1 / n[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mpps": (2.0, 1.0)}, r"method\.mpps=\(2\.0, 1\.0\): the finest first"),
        ({"mpps": ()}, "the finest first"),
        (
            {"mpps": (1.0, 2.5), "sampling": {"layout": Layout.own}},
            "multiples of the first",
        ),
        ({"crops": 0}, r"method\.crops=0: 1 or more"),
        ({"head": {"branches": 0}}, r"method\.head\.branches=0: 1 or more"),
        ({"head": {"branches": 2}}, r"head\.branches=2: .* set attention_width"),
    ],
)
def test_what_cannot_be_sampled_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config_fields.validate(method(**fields), "config.method")
