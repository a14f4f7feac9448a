"""Scoring, sifting, reading and learning in turns is learning at once."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from glances import CELL, MPP, TASK, TRUNK, batch, write_slides

from wsi_jax.methods.attention_pooling import AttentionPooling, Judge
from wsi_jax.training.checkpoint import Checkpoints
from wsi_jax.training.compile import compile_method, make_mesh
from wsi_jax.training.loop import StageConfig
from wsi_jax.training.optimiser import Optimiser, Schedule
from wsi_jax.training.tile_scorer import Candidates
from wsi_jax.training.tile_selection import fingerprint

CONFIG = AttentionPooling(
    scorer=TRUNK,
    trunk=TRUNK,
    mpp=1.0,  # as on disk: what is resampled may be a grey level off
    tile_px=16,
    learnt=2,
    best=3,
    worst=3,
    renew=3,
    scoring=StageConfig(
        optimiser=Optimiser(learning_rate=1e-2, warmup=0.0, schedule=Schedule.constant)
    ),
    candidates=10,
    width=4,
    attention=3,
    score_chunk=16,
    chunk=8,
)
FORMS = {
    "scorer": (CONFIG, 0),
    "judge": (CONFIG, 1),
    "joint": (dataclasses.replace(CONFIG, joint=True), 0),
}


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    return write_slides(tmp_path_factory.mktemp("slides"))


def made(config, stage=0, tx=None):
    stages = config.stages(TASK, tx or optax.sgd(0.1), MPP, CELL)
    return compile_method(stages[stage].method, make_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("form", FORMS)
def test_staged_is_pure(views, form):
    """Loss, update and verdict, to 1e-6: tiles are read, or lie on the device."""
    states, said = [], []
    config, stage = FORMS[form]
    for resident in (True, False):
        config = dataclasses.replace(config, resident=resident)
        compiled, bag = made(config, stage), batch(config, views, resident)
        state = compiled.init(jax.random.key(0), bag)
        for _ in range(2):
            state, metrics = compiled.step(state, bag)
        states.append(jax.device_get((state.params, metrics)))
        said.append(compiled.predict(state.params, bag, jax.random.key(1)))
    chex.assert_trees_all_close(*states, rtol=1e-5, atol=1e-6)
    tiles = bag.mask.sum((1, 2))
    for one in said:
        np.testing.assert_array_equal(one.counts["tiles"], tiles)
        np.testing.assert_allclose(one.attention[:3].sum(1), 1, rtol=1e-5)
        kept = (np.asarray(one.attention[:3]) > 0).sum(1)
        assert kept.max() <= config.best + config.worst < tiles[:3].min()
    n = min(one.attention.shape[1] for one in said)  # of padding
    cut = [one._replace(attention=one.attention[:, :n]) for one in said]
    chex.assert_trees_all_close(*cut, rtol=1e-5, atol=1e-6)


def test_resumed_is_uninterrupted(views, tmp_path):
    """Bit by bit, between two renewals: what scores is in the checkpoint."""
    bag = batch(CONFIG, views, resident=False)
    bag = bag._replace(x=bag.x._replace(after=bag))
    compiled = made(CONFIG)
    state = compiled.init(jax.random.key(0), bag)
    for step in range(5):
        if step == 2:
            checkpoints = Checkpoints(tmp_path)
            checkpoints.save(2, state, {})
            checkpoints.close()
        before = jax.device_get(state.opt.scorer)
        state, _ = compiled.step(state, bag)
        moved = fingerprint(before) != fingerprint(state.opt.scorer)
        assert moved.any() == (step == 2)
    again = made(CONFIG)
    resumed, _ = Checkpoints(tmp_path).restore(again.init(jax.random.key(1), bag))
    for _ in range(3):
        resumed, _ = again.step(resumed, bag)
    plain = lambda s: jax.device_get((s.params, s.opt))
    chex.assert_trees_all_equal(plain(resumed), plain(state))


def test_no_tile_is_scored_twice_and_few_are_read_at_a_time(views):
    """As long as what scores is the same; and when it is not, all are scored anew."""
    compiled, bag = made(CONFIG, stage=1), batch(CONFIG, views, resident=False)
    asked, read = [], bag.x.read

    def counted(which, yx, mask):
        asked.append(int(mask.sum()))
        return read(which, yx, mask)

    bag = bag._replace(x=bag.x._replace(read=counted))
    params = compiled.init(jax.random.key(0), bag).params
    kept, tiles = 3 * (CONFIG.best + CONFIG.worst), int(bag.mask.sum())
    asked.clear()
    first = compiled.predict(params, bag, jax.random.key(0))
    assert sum(asked) == tiles + kept
    assert max(asked[:-1]) <= CONFIG.score_chunk
    asked.clear()
    again = compiled.predict(params, bag, jax.random.key(0))
    assert asked == [kept]
    chex.assert_trees_all_equal(again, first)
    other = params | {"scorer": jax.tree.map(lambda a: a * 1.1, params["scorer"])}
    asked.clear()
    compiled.predict(other, bag, jax.random.key(0))
    assert sum(asked) == tiles + kept


def test_more_slides_than_are_scored_at_a_time_and_one_twice(views):
    """A slide that comes twice is scored once, and says the same both times."""
    four, said = [*views, views[0]], []
    for chunk in (2, 16):
        config = dataclasses.replace(CONFIG, score_chunk=chunk)
        compiled, bag = made(config, stage=1), batch(config, four, resident=False)
        params = compiled.init(jax.random.key(0), bag).params
        said.append(compiled.predict(params, bag, jax.random.key(0)))
    chex.assert_trees_all_close(*said, rtol=1e-5, atol=1e-6)
    first, last = (said[0].logits[i] for i in (0, 3))
    np.testing.assert_allclose(first, last, rtol=1e-5, atol=1e-6)
    assert said[0].counts["tiles"][0] == said[0].counts["tiles"][3]


def test_the_best_and_the_worst_without_repetition():
    """From each end in order; of few tiles the best go first, and none comes twice."""
    config = dataclasses.replace(CONFIG, best=2, worst=3)
    net = made_net(config)
    scores = jnp.array([[0.1, 0.9, 0.5, 0.3, 0.7, 0.2, 9, 9], [3, 1, 2] + [9] * 5])
    there = jnp.arange(8)[None] < jnp.array([[6], [3]])
    index = 10 + jnp.broadcast_to(jnp.arange(8)[None], there.shape)
    kept = net.sift(scores, Candidates(index, there))
    one, other = ([*row[mask]] for row, mask in zip(kept.index, kept.mask, strict=True))
    assert one == [11, 14, 10, 15, 13]
    assert other == [10, 12, 11]
    np.testing.assert_array_equal(kept.index - 10, kept.place)


def made_net(config):
    return Judge(config, TASK, config.cells(MPP, CELL))


def test_a_slide_is_scored_by_what_is_not_normal():
    """The log-odds of 1 - p(normal), whichever of the other classes it is."""
    net = made_net(CONFIG)
    params = net.init(jax.random.key(0))["scorer"]
    tiles = jax.random.randint(jax.random.key(1), (5, 16, 16, 3), 0, 256)
    tiles = tiles.astype(jnp.uint8)
    p = jax.nn.softmax(net._logits(net.scoring, params, tiles[None])[0])
    odds = jnp.log((1 - p[:, 0]) / p[:, 0])
    np.testing.assert_allclose(net.score(params, tiles), odds, rtol=1e-4, atol=1e-5)


def test_a_fingerprint_tells_every_bit_and_its_place():
    tree = {"a": jnp.arange(5.0), "b": jnp.ones((2, 3))}
    found = {fingerprint(tree).tobytes()}
    for i in range(5):
        bits = np.array(tree["a"]).view(np.uint32)
        bits[i] ^= 1
        found.add(fingerprint(tree | {"a": jnp.array(bits.view(np.float32))}).tobytes())
    found.add(fingerprint(tree | {"a": tree["a"][::-1]}).tobytes())
    found.add(fingerprint({"a": tree["b"].ravel()[:5], "b": tree["b"]}).tobytes())
    assert len(found) == 8
