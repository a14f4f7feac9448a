"""Episodes played by versions are those of the environment, state by state."""

import functools

import chex
import episodes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sasha

from wsi_jax.ops.episode import RowUpdater, TwoLevelSlides, greedy, play
from wsi_jax.ops.episode_states import state_logits
from wsi_jax.ops.zoom_env import Rules


def states_of(slides, episode, steps):
    """Every row of every state [b e t n d]."""
    step = jnp.arange(steps).reshape(1, 1, -1, 1, 1)
    before = lambda when: when[:, :, None, :, None] < step
    rows = jnp.where(
        before(episode.estimate_step),
        episode.estimated[:, :, None],
        slides.z[:, None, None],
    )
    return jnp.where(before(episode.zoom_step), slides.v[:, None, None], rows)


@pytest.mark.parametrize("d", [32, 384])
def test_episodes_are_the_fixture(shared, d):
    x = sasha.load(shared, f"episode_d{d}_train_masked")
    w = sasha.load(shared, f"episode_weights_d{d}")
    (hafed, p), (updater, q), (actor, r) = (
        sasha.hafed(w, "hafed"), sasha.updater(w, "tsu"), sasha.actor(w, "actor")
    )  # fmt: skip
    steps = len(x["actions"])

    @jax.jit
    def run(z, v):
        slides = TwoLevelSlides(
            z[None], v[None], jnp.ones((1, len(z)), bool), jnp.array([steps])
        )
        episode = play(
            slides, RowUpdater.from_module(updater, q),
            functools.partial(actor.apply, r),
            greedy, Rules(signed=False), steps=steps, episodes=1, chunk=5,
        )  # fmt: skip
        classify = functools.partial(hafed.apply, p, method="row_logits")
        logits = state_logits(classify, slides, episode, steps=steps + 1, chunk=4)
        return episode, states_of(slides, episode, steps + 1)[0, 0], logits[0, 0]

    episode, states, logits = run(w["Z"], w["V"])
    np.testing.assert_array_equal(episode.actions[0, 0], x["actions"])
    changed = episode.estimate_step[0] == np.arange(steps)[:, None]
    np.testing.assert_array_equal(changed, x["tsu_rows_changed"])
    close = functools.partial(np.testing.assert_allclose, atol=1e-4)
    if "states" in x:
        close(states, x["states"])
    else:
        close(states[-1], x["state_final"])
        close(states.sum(-1), x["state_rowsum_each_step"], atol=1e-3)
    losses = -jax.nn.log_softmax(logits)[:, w["label"]]
    close(losses[1:], x["ce_after_step"])
    close(logits[-1], x["final_logits"][0])


@pytest.mark.parametrize("signed", [True, False])
def test_states_are_those_of_the_environment(x64, signed):
    problem, rules = episodes.problem(np.float64), Rules(tau=0.8, signed=signed)

    @jax.jit
    def run():
        episode, plain = problem.play(rules=rules), problem.play_stacked(rules)
        steps = episodes.STEPS + 1
        logits = state_logits(
            problem.classify, problem.slides, episode, steps=steps, chunk=4
        )
        each = jax.vmap(jax.vmap(problem.classify_state, (0, None)), (0, None))
        wanted = jax.vmap(each)(plain.states, problem.slides.mask)
        states = states_of(problem.slides, episode, steps)
        return (episode, states, logits), (plain, wanted)

    (episode, states, logits), (plain, wanted) = run()
    live = np.arange(episodes.STEPS)[None, None] < problem.slides.horizon[:, None, None]
    assert ((episode.actions == plain.actions) | ~live).all()
    chex.assert_trees_all_close((states, logits), (plain.states, wanted), atol=1e-12)
    # There is something to be seen: rows are updated, some many steps after another,
    # and episodes differ; no tile is visited twice, nor updated thereafter.
    updated = episode.estimate_step < episodes.STEPS
    assert updated.sum() > 20
    assert not (updated & (episode.estimate_step >= episode.zoom_step)).any()
    assert (episode.actions[:, 0] != episode.actions[:, 1]).any()
    count = (episode.zoom_step < episodes.STEPS).sum(-1)
    np.testing.assert_array_equal(count, problem.slides.horizon[:, None].repeat(2, 1))
    assert len(np.unique(episode.estimate_step)) > 3


def test_a_cosine_of_just_tau_is_similar():
    problem = episodes.problem()
    _, v, mask, horizon = problem.slides
    kind = np.arange(mask.shape[1]) % 3
    z = jnp.eye(3, episodes.D)[kind][None].repeat(len(mask), 0)  # cosines are 0 and 1
    problem = problem._replace(slides=TwoLevelSlides.of(z, v, mask, horizon))
    episode = jax.jit(lambda: problem.play(rules=Rules(tau=1.0)))()
    first = np.asarray(episode.actions)[..., :1]
    alike = (kind == kind[first]) & (np.arange(len(kind)) != first)
    np.testing.assert_array_equal(episode.estimate_step == 0, alike & mask[:, None])


def test_any_number_of_rows_is_updated_at_a_time(x64):
    problem = episodes.problem(np.float64)
    run = jax.jit(problem.play, static_argnames="chunk")
    chex.assert_trees_all_close(run(chunk=64), run(chunk=1), atol=1e-12)


def test_padding_is_invisible():
    plain, padded = episodes.problem(), episodes.problem(padding=3, junk=np.nan)

    def run(problem):
        episode = problem.play()
        logits = state_logits(
            problem.classify, problem.slides, episode, steps=episodes.STEPS, chunk=4
        )
        return episode, logits

    wanted, logits = jax.jit(lambda: run(plain))()
    behind_padding, same = jax.jit(lambda: run(padded))()
    b, n = plain.slides.mask.shape
    behind = lambda a: a[:, :, n:]
    assert (behind(behind_padding.zoom_step) == episodes.STEPS).all()
    assert (behind(behind_padding.estimate_step) == episodes.STEPS).all()
    behind_padding = jax.tree.map(lambda a: a[:b, :, :n], behind_padding)
    live = jnp.arange(episodes.STEPS)[None, None] < plain.slides.horizon[:, None, None]
    taken = lambda e: e._replace(actions=jnp.where(live, e.actions, -1))
    chex.assert_trees_all_close(taken(behind_padding), taken(wanted), atol=1e-6)
    chex.assert_trees_all_close(same[:b], logits, atol=1e-6)


@pytest.mark.parametrize("rules", [Rules(once=False), Rules(freeze=True)])
def test_rules_that_versions_cannot_follow_are_refused(rules):
    with pytest.raises(ValueError, match=r"play_steps"):
        episodes.problem().play(rules=rules)
