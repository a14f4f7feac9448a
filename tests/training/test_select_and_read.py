"""Selecting, reading and learning in rounds is doing all of it on the device."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from crop_slides import CELL, MPP, TASK, TRUNK, Run, method, on_device, write_slides

from wsi_jax.methods.attention_pooling import AttentionPooling, Classifier, Scoring
from wsi_jax.methods.patch_all import PatchAll
from wsi_jax.nets.crop_options import CropAugmentation, HeadConfig
from wsi_jax.nets.tile_pooling import PoolingHead
from wsi_jax.ops.sampling import Estimator
from wsi_jax.training.checkpoint import Checkpoints
from wsi_jax.training.optimiser import Optimiser, Schedule
from wsi_jax.training.select_and_read import Selection
from wsi_jax.training.tile_scores import fingerprint

POOLING = AttentionPooling(
    scorer=TRUNK,
    trunk=TRUNK,
    mpp=1.0,  # as on disk: what is resampled may be a grey level off
    tile_px=16,
    best=3,
    worst=3,
    scoring=Scoring(
        optimiser=Optimiser(learning_rate=1e-2, warmup=0.0, schedule=Schedule.constant),
        tiles=2,
        renew=3,
        candidates=10,
        chunk=16,
    ),
    head=PoolingHead(width=4, attention_width=3),
    chunk=8,
)
STILL = CropAugmentation(enabled=False)
PATCH_ALL = PatchAll(
    trunk=TRUNK,
    mpp=1.0,
    tile_px=16,
    head=HeadConfig(width=4, attention_width=3),
    augment=STILL,
)
MANY = {
    "augment": CropAugmentation(stain=0.2),
    "head": {"by_magnification": True, "deviation": True},
    "loss": {"magnification_entropy": 0.1, "per_magnification": 1.0},
}


def sampling(lookahead, every_cell=False, **fields):
    estimator = Estimator.full if every_cell else Estimator.ordered
    options = {"lookahead": lookahead, "estimator": estimator}
    mpps = (1.0,) if every_cell else (1.0, 2.0)
    return method(mpps=mpps, sampling=options, **fields)


# Each with a stage. In rounds there are fewer masked cells: augmentation draws anew.
METHODS = {
    "sampling": (sampling(False, **MANY), 0),
    "sampling-every-cell": (sampling(False, every_cell=True, augment=STILL), 0),
    "patch-all": (dataclasses.replace(PATCH_ALL, lookahead=False), 0),
    "pooling-scorer": (POOLING, 0),
}
AHEAD = {"sampling": (sampling(True), 0), "pooling-scorer": (POOLING, 0)}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    return write_slides(tmp_path_factory.mktemp("slides"))


@pytest.mark.parametrize("name", METHODS)
def test_in_rounds_is_on_the_device(slides, name):
    """Loss, update and prediction: crops are read, or gathered on the device."""
    config, stage = METHODS[name]
    states, predictions = [], []
    for form in (on_device(config), config):
        run = Run(form, slides, stage)
        state, metrics = run.steps(run.init(), 2)
        states.append(jax.device_get((state.params, metrics)))
        predictions.append(run.predict(state.params)._replace(trace=None))
    # All cells are summed in another order, which float32 shows.
    atol = 1e-6 if name in ("sampling", "pooling-scorer") else 1e-5
    chex.assert_trees_all_close(*states, rtol=1e-5, atol=atol)
    for one in predictions:
        np.testing.assert_allclose(one.attention[:3].sum(1), 1, rtol=1e-5)
    n = min(one.attention.shape[1] for one in predictions)  # of padding
    cut = [one._replace(attention=one.attention[:, :n]) for one in predictions]
    chex.assert_trees_all_close(*cut, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", AHEAD)
def test_resumed_is_uninterrupted(slides, name, tmp_path):
    """Bit by bit, also between two renewals: what is selected ahead, and the view that
    selects, are in the checkpoint."""
    config, stage = AHEAD[name]
    run = Run(config, slides, stage, optax.adam(1e-2))
    steps = run.method.steps(run.init(), itertools.repeat(run.bag))
    for i, (state, _) in enumerate(itertools.islice(steps, 5)):
        if i == 1:
            checkpoints = Checkpoints(tmp_path)
            checkpoints.save(2, state, {})
            checkpoints.close()
    again = Run(config, slides, stage, optax.adam(1e-2))
    resumed, _ = Checkpoints(tmp_path).restore(again.init())
    resumed, _ = again.steps(resumed, 3)
    plain = lambda s: jax.device_get((s.params, s.opt))
    chex.assert_trees_all_equal(plain(resumed), plain(state))


def test_a_batch_is_drawn_before_the_last_one_is_learnt_from(slides):
    """By parameters one step old; the first step draws by the first in either way."""
    far = optax.adam(0.03)  # so that other crops are drawn a step later
    ahead, plain = (Run(sampling(one), slides, tx=far) for one in (True, False))
    states = [run.init() for run in (ahead, plain)]
    chex.assert_trees_all_equal(*(jax.device_get(s.params) for s in states))
    first = np.asarray(states[0].opt.ahead.index)
    each = [
        [jax.device_get(state) for state, _ in itertools.islice(steps, 2)]
        for steps in (
            run.method.steps(state, itertools.repeat(run.bag))
            for run, state in zip((ahead, plain), states, strict=True)
        )
    ]
    (second, third), others = each
    chex.assert_trees_all_close(second.params, others[0].params, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(second.opt.ahead.index, first)
    gaps = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), third.params, others[1].params
    )
    assert max(jax.tree.leaves(gaps)) > 1e-6


def test_no_next_batch_is_an_error(slides):
    run = Run(method(), slides)
    with pytest.raises(ValueError, match="batches have ended"):
        next(run.method.steps(run.init(), [run.bag]))


def test_predictions_read_ahead_and_are_the_same(slides):
    run = Run(method(), slides)
    params, key = run.init().params, jax.random.key(1)
    alone = run.predict(params)
    run.requests.clear()
    several = run.method.predictions(params, [run.bag] * 3, key)
    chex.assert_trees_all_equal(next(several), alone)
    assert len(run.requests) == 2  # the second's reading has begun
    for one in several:
        chex.assert_trees_all_equal(one, alone)


def test_patch_all_reads_every_cell_once(slides):
    """Its attention is on all tiles with tissue, and padding has none."""
    config = dataclasses.replace(PATCH_ALL, mpp=2.0, augment=CropAugmentation())
    run = Run(config, slides, tx=optax.adam(1e-3), cache_gib=0.0)
    state = run.init()
    for slide in slides:
        slide.n_read = 0
    prediction = run.predict(state.params)
    tiles = run.bag.mask.sum((1, 2))
    np.testing.assert_array_equal(prediction.counts["tiles"], tiles)
    for attention, n in zip(prediction.attention, tiles, strict=True):
        assert not np.asarray(attention)[n:].any()
    assert [slide.n_read for slide in slides] == tiles[:3].tolist()
    steps = run.method.steps(state, itertools.repeat(run.bag))
    losses = [float(metrics["loss"]) for _, metrics in itertools.islice(steps, 20)]
    assert np.mean(losses[-5:]) < 0.95 * losses[0]


def test_the_view_that_selects_is_renewed_now_and_then(slides):
    run = Run(POOLING, slides)
    state, changes = run.init(), []
    view = fingerprint(state.opt.view)
    steps = run.method.steps(state, itertools.repeat(run.bag))
    for state, _ in itertools.islice(steps, 5):
        changes.append(bool((fingerprint(state.opt.view) != view).any()))
        view = fingerprint(state.opt.view)
    assert changes == [False, False, True, False, False]


def test_no_tile_is_scored_twice_and_few_are_read_at_a_time(slides):
    """As long as the view is the same; and when it is not, all are scored anew."""
    run = Run(POOLING, slides, stage=1)
    params = run.init().params
    read, tiles = 3 * (POOLING.best + POOLING.worst), int(run.bag.mask.sum())
    run.requests.clear()
    first = run.predict(params)
    assert sum(run.requests) == tiles + read
    assert max(run.requests[:-1]) <= POOLING.scoring.chunk
    run.requests.clear()
    again = run.predict(params)
    assert run.requests == [read]
    chex.assert_trees_all_equal(again, first)
    np.testing.assert_array_equal(first.counts["tiles"], run.bag.mask.sum((1, 2)))
    selected = (np.asarray(first.attention[:3]) > 0).sum(1)
    assert (selected <= POOLING.best + POOLING.worst).all()
    other = params | {"scorer": jax.tree.map(lambda a: a * 1.1, params["scorer"])}
    run.requests.clear()
    run.predict(other)
    assert sum(run.requests) == tiles + read


@pytest.mark.parametrize("joint", [False, True])
def test_more_slides_than_are_scored_at_a_time_and_one_twice(slides, joint):
    """A slide that comes twice is scored once, whatever the order of its candidates.

    And in rounds is on the device, in the classifier's stage and in joint training.
    """
    results = []
    for chunk, resident in ((2, False), (16, True)):
        scoring = dataclasses.replace(POOLING.scoring, candidates=1000, chunk=chunk)
        config = dataclasses.replace(
            POOLING, joint=joint, scoring=scoring, resident=resident
        )
        run = Run(config, [slides[0], *slides], stage=1 - joint)
        state, metrics = run.steps(run.init(), 1)
        prediction = run.predict(state.params)
        results.append(jax.device_get((prediction.logits, state.params, metrics)))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)
    first, second, *_ = results[0][0]
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_the_best_and_the_worst_without_repetition():
    """From each end in order; of few tiles the best go first, and none comes twice."""
    net = classifier(dataclasses.replace(POOLING, best=2, worst=3))
    scores = jnp.array([[0.1, 0.9, 0.5, 0.3, 0.7, 0.2, 9, 9], [3, 1, 2] + [9] * 5])
    mask = jnp.arange(8)[None] < jnp.array([[6], [3]])
    index = 10 + jnp.broadcast_to(jnp.arange(8)[None], mask.shape)
    selection = net.select(Selection(index, mask), scores)
    rows = zip(selection.index, selection.mask, strict=True)
    one, other = ([*row[mask]] for row, mask in rows)
    assert one == [11, 14, 10, 15, 13]
    assert other == [10, 12, 11]
    np.testing.assert_array_equal(selection.index - 10, selection.extra)


def classifier(config):
    return Classifier(config, TASK, config.cells(MPP, CELL))


def test_a_tile_is_scored_by_what_is_not_normal():
    """The log-odds of 1 - p(normal), whichever of the other classes it is."""
    net = classifier(POOLING)
    params = net.init(jax.random.key(0))["scorer"]
    tiles = jax.random.randint(jax.random.key(1), (5, 16, 16, 3), 0, 256)
    tiles = tiles.astype(jnp.uint8)
    p = jax.nn.softmax(net.tile_net.classify_each(params, tiles[None])[0])
    odds = jnp.log((1 - p[:, 0]) / p[:, 0])
    np.testing.assert_allclose(net.score(params, tiles), odds, rtol=1e-4, atol=1e-5)


def test_a_fingerprint_shows_every_bit_and_its_place():
    tree = {"a": jnp.arange(5.0), "b": jnp.ones((2, 3))}
    prints = {fingerprint(tree).tobytes()}
    for i in range(5):
        bits = np.array(tree["a"]).view(np.uint32)
        bits[i] ^= 1
        other = tree | {"a": jnp.array(bits.view(np.float32))}
        prints.add(fingerprint(other).tobytes())
    prints.add(fingerprint(tree | {"a": tree["a"][::-1]}).tobytes())
    prints.add(fingerprint({"a": tree["b"].ravel()[:5], "b": tree["b"]}).tobytes())
    assert len(prints) == 8


@pytest.mark.parametrize("config", [sampling(True, **MANY), POOLING, PATCH_ALL])
def test_one_device_is_four(slides, config):
    """In training and predictions; of four slides one is missing."""

    def trained(devices):
        run = Run(config, slides, stage=-1, tx=optax.sgd(0.1), devices=devices)
        state, metrics = run.steps(run.init(), 2)
        prediction = run.predict(state.params)._replace(trace=None)
        return jax.device_get((metrics, prediction))

    chex.assert_trees_all_close(trained(1), trained(4), rtol=1e-5, atol=1e-6)
