"""PPO: an update is that of the released code, and that of stacked states."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import episodes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sasha

from benchmarks import stacked
from wsi_jax.ops.advantages import Reward
from wsi_jax.ops.episode import RowUpdater, TwoLevelSlides, play
from wsi_jax.ops.episode_states import state_logits
from wsi_jax.ops.zoom_env import Rules
from wsi_jax.training import ppo
from wsi_jax.training.actor_critic import Agent, evaluate_policy
from wsi_jax.training.ppo import PPO

CONFIG = PPO(chunk=3)
close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def clipped(lr, decay, norm):
    return optax.chain(
        optax.clip_by_global_norm(norm), optax.adamw(lr, weight_decay=decay)
    )


TX = ppo.optimiser(*[clipped(1e-3, 1e-2, 0.5)] * 2)


class Update(NamedTuple):
    """The fixture's numbers, and our functions that must give them."""

    x: dict
    params: dict
    opt: optax.OptState
    gain: Callable  # params -> experience of the fixture's actions
    learn: Callable  # (params, opt, experience) -> (policy, params, opt, metrics)


@pytest.fixture(scope="module")
def update(shared) -> Update:
    x = sasha.load(shared, "ppo_update_d32")
    label = sasha.load(shared, "episode_weights_d32")["label"]
    (hafed, p), (updater, q) = sasha.hafed(x, "hafed"), sasha.updater(x, "tsu")
    actor, before_actor = sasha.actor(x, "actor_before")
    critic, before_critic = sasha.critic(x, "critic_before")
    agent, params = Agent.from_modules(actor, critic), {"actor": before_actor}
    params["critic"] = before_critic
    config = PPO(
        epochs=1, clip=float(x["hp/clip"]), gamma=float(x["hp/gamma"]),
        gae_lambda=float(x["hp/lam"]), entropy=float(x["hp/entropy_coef"]),
        reward=Reward.loss, mask_visited=False, chunk=13,
    )  # fmt: skip
    one = clipped(*(float(x[f"hp/{name}"]) for name in ("lr", "wd", "max_grad_norm")))
    tx = ppo.optimiser(one, one)
    actions = x["actions"].reshape(1, 2, -1)
    steps = actions.shape[-1]
    z, v = x["Z"][None], x["V"][None]
    slides = TwoLevelSlides(z, v, jnp.ones(z.shape[:2], bool), jnp.array([steps]))

    @jax.jit
    def gain(params):
        episode = play(
            slides, RowUpdater.from_module(updater, q),
            lambda x: agent.act(params, x), lambda step, log_p: actions[..., step],
            Rules(signed=False), steps=steps, episodes=2, chunk=8,
        )  # fmt: skip
        return ppo.experience(
            agent, params, lambda x: hafed.apply(p, x, method="row_logits"), slides,
            label[None], jnp.ones(1), episode, config,
        )  # fmt: skip

    @jax.jit
    def learn(params, opt, gained):
        args = agent, params, slides, gained.episode
        now = evaluate_policy(*args, masked=False, chunk=13)
        return now, *ppo.improve(agent, tx, params, opt, gained, config)

    return Update(x, params, tx.init(params), gain, learn)


def test_experience_is_the_fixture(update):
    x, gained = update.x, update.gain(update.params)
    zoom_step = np.asarray(gained.episode.zoom_step[0])
    allowed = zoom_step[:, None] >= np.arange(gained.target.shape[-1])[:, None]
    np.testing.assert_array_equal(allowed.reshape(26, -1), x["allowed"])
    close(gained.log_p.ravel(), x["old_logprob_masked"])
    close(gained.target.ravel(), x["critic_targets"])
    close(gained.advantage.ravel(), x["advantages_normalised"])


def test_an_update_is_the_fixture(update):
    x, params, opt, gain, learn = update
    gained = gain(params)
    for epoch in range(4):
        now, params, opt, metrics = learn(params, opt, gained)
        if epoch == 0:
            close(now.value[0], x["values_old"])
            raw = gained.target[0] - now.value[0]
            close(raw.ravel(), x["advantages"])
        ratio = jnp.exp(now.log_p - gained.log_p).ravel()
        close(ratio, x["ratio_per_epoch"][epoch])
        close(now.entropy.ravel(), x["entropy_unmasked_per_epoch"][epoch])
        for i, name in enumerate(("actor", "critic")):
            close(metrics[f"{name}_loss"][0], x[f"{name}_loss_per_epoch"][epoch])
            norm = x["grad_norm_preclip_actor_critic"][epoch, i]
            close(metrics[f"{name}_grad_norm"][0], norm)
    after = {name: getattr(sasha, name)(x, f"{name}_after")[1] for name in params}
    sasha.assert_stepped(params, after, float(x["hp/lr"]), steps=4)


def gain(problem, params, episode, config):
    return ppo.experience(
        episodes.AGENT, params, problem.classify, problem.slides, problem.label,
        problem.weight, episode, config,
    )  # fmt: skip


def mean_loss(gained, params):
    count = (gained.weight > 0).sum().astype(gained.gain.dtype)
    return ppo.loss(episodes.AGENT, params, gained, CONFIG, count)[0]


def test_an_update_is_that_of_stacked_states(x64):
    """In value and in gradient, however the slides are padded, and whatever with.

    Slides of twice the weight have twice the gradient.
    """
    padded = episodes.problem(np.float64, padding=3, junk=np.nan)
    problem = episodes.problem(np.float64)

    @jax.jit
    def by_versions(params):
        gained = gain(padded, params, padded.play(), CONFIG)
        args = episodes.AGENT, TX, params, TX.init(params), gained, CONFIG
        heavy = gained._replace(weight=2 * gained.weight)
        loss = functools.partial(mean_loss, heavy)
        return jax.grad(loss)(params), *ppo.improve(*args)

    @jax.jit
    def plain(params):
        return stacked.train(
            episodes.AGENT, TX, params, problem.classify_state, problem.slides,
            problem.label, problem.play_stacked(), CONFIG,
        )  # fmt: skip

    grads, params, _, metrics = by_versions(padded.agent)
    wanted, losses, wanted_grads = plain(problem.agent)
    close = functools.partial(chex.assert_trees_all_close, rtol=0, atol=1e-12)
    close((metrics["actor_loss"], metrics["critic_loss"]), losses)
    close(grads, jax.tree.map(lambda g: 2 * g[0], wanted_grads))
    # Biases of attention move no softmax: their gradient is noise, their step Adam's.
    for tree in (*params.values(), *wanted.values()):
        tree["params"]["gated"]["logits"].pop("bias")
    close(params, wanted, atol=1e-9)
    assert metrics["critic_loss"][3] < metrics["critic_loss"][0]


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_a_policy_that_is_all_but_certain_stays_one(scale):
    """Its weights span more than float32 has; probabilities are some, all the same."""
    problem = episodes.problem()
    steep = jax.tree.map(lambda a: scale * a, problem.agent)

    @jax.jit
    def run(params):
        episode = problem.play()
        args = problem.slides, episode
        evaluate = functools.partial(evaluate_policy, masked=True, chunk=3)
        total = lambda params: sum(
            x.sum() for x in evaluate(episodes.AGENT, params, *args)
        )
        live = jnp.arange(episodes.STEPS)[None] < problem.slides.horizon[:, None]
        return live, evaluate(episodes.AGENT, params, *args), jax.grad(total)(params)

    live, policy, grads = run(steep)
    chex.assert_tree_all_finite((policy, grads))
    assert (jnp.where(live[:, None], policy.log_p, 0) <= 1e-5).all()
    assert (policy.entropy >= -1e-5).all()
    assert policy.log_p.min() < -70


def test_no_gradient_is_scattered():
    """Where rows are gathered by an index, their gradient is scattered: on a TPU, one
    number at a time."""
    problem = episodes.problem()
    gained = jax.eval_shape(
        lambda params: gain(problem, params, problem.play(), CONFIG), problem.agent
    )
    program = jax.make_jaxpr(jax.grad(mean_loss, 1))(gained, problem.agent)
    assert "scatter" not in str(program)


def test_rewards_add_up_to_what_the_loss_falls_by():
    """So does the first target, where a reward is worth the same whenever it comes."""
    problem, config = episodes.problem(), PPO(gae_lambda=1.0, chunk=3)

    @jax.jit
    def run(params):
        episode = problem.play()
        gained = gain(problem, params, episode, config)
        args, steps = (problem.classify, problem.slides, episode), episodes.STEPS + 1
        logits = state_logits(*args, steps=steps, chunk=3)
        return gained.target[..., 0], logits

    target, logits = run(problem.agent)
    loss = -jnp.take_along_axis(
        jax.nn.log_softmax(logits), problem.label[:, None, None, None], -1
    )
    close(target, loss[:, :, 0, 0] - loss[:, :, -1, 0])
