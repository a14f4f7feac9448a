"""PPO on every row of every state: what `training.ppo` does, at full cost.

Episodes are played by `ops.zoom_env`, their states are stacked [b e t n d], and at
every epoch actor and critic see all of them, as in the code released with SASHA.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from wsi_jax.ops import zoom_env
from wsi_jax.ops.advantages import advantages, normalise, rewards, surrogate
from wsi_jax.ops.attention_weights import masked_softmax
from wsi_jax.ops.episode import TwoLevelSlides
from wsi_jax.ops.sampling import entropy, log_attention
from wsi_jax.training.actor_critic import Agent
from wsi_jax.training.ppo import PPO


class Stacked(NamedTuple):
    """Episodes: the tiles zoomed into, [b e t], and the states, [b e t+1 n d]."""

    actions: jax.Array
    states: jax.Array


def play(
    slides: TwoLevelSlides, update: Callable, act: Callable, keys, rules, steps: int
):
    """The episodes that `ops.episode.play` samples with the same keys."""

    def policy(key, step, rows, allowed):
        log_p = log_attention(act(rows), allowed)
        noise = jax.random.gumbel(jax.random.fold_in(key, step), log_p.shape)
        return (log_p + noise.astype(log_p.dtype)).argmax()

    def one(key, z, v, mask, horizon):
        choose = lambda *state: policy(key, *state)
        start = zoom_env.reset(z, mask, horizon)
        end, (actions, states) = zoom_env.play_steps(
            start, v, update, choose, rules, steps
        )
        return Stacked(actions, jnp.concatenate([states, end.rows[None]]))

    return jax.vmap(jax.vmap(one, (0, None, None, None, None)))(keys, *slides)


def action_statistics(agent: Agent, slides: TwoLevelSlides, episode: Stacked):
    """Which steps were made [b e t]; (params) -> log probabilities of the actions,
    entropies and values, each [b e t]."""
    b, e, steps = episode.actions.shape
    n = slides.mask.shape[-1]
    mask = slides.mask[:, None, None]
    live = jnp.arange(steps)[None] < slides.horizon[:, None]
    live = jnp.broadcast_to(live[:, None], episode.actions.shape)
    visits = jax.nn.one_hot(episode.actions, n, dtype=bool) & live[..., None]
    before = jnp.cumsum(visits, 2) - visits
    allowed = mask & (before == 0)
    states = episode.states[:, :, :-1]
    share = lambda whole: jnp.broadcast_to(
        jnp.arange(steps)[None, None] / whole[:, None, None], (b, e, steps)
    )
    clock = jnp.stack([share(slides.horizon), share(slides.mask.sum(-1))], -1)

    def statistics(params):
        each = jax.vmap(jax.vmap(jax.vmap(log_attention)))
        log_p = each(agent.act(params, states), allowed)
        scores, values = agent.project_rows(params, states)
        weights = masked_softmax(scores[..., 0], mask)
        pooled = jnp.einsum("betn,betnp->betp", weights, values)
        chosen = jnp.take_along_axis(log_p, episode.actions[..., None], -1)[..., 0]
        spread = jax.vmap(jax.vmap(jax.vmap(entropy)))(log_p)
        return chosen, spread, agent.value(params, pooled, clock)

    return live, statistics


def train(
    agent: Agent,
    tx: optax.GradientTransformation,
    params,
    classify: Callable,
    slides: TwoLevelSlides,
    label,
    episode: Stacked,
    config: PPO,
):
    """An update by `episode`; returns parameters, losses and gradients by epoch.

    Args:
        classify: (state [n d], mask [n]) -> logits [c].
        agent, tx, params, slides, label, config: as in `training.ppo`.
        episode: as played.
    """
    live, statistics = action_statistics(agent, slides, episode)
    each = jax.vmap(jax.vmap(classify, (0, None)), (0, None))
    logits = jax.vmap(each)(episode.states, slides.mask)
    wanted = jnp.broadcast_to(label[:, None, None], logits.shape[:-1])
    surprise = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    log_p, _, value = statistics(params)
    advantage = advantages(
        rewards(surprise, config.reward),
        value,
        live,
        gamma=config.gamma,
        lam=config.gae_lambda,
    )
    target, advantage = advantage + value, jax.vmap(normalise)(advantage, live)

    def loss(params):
        now, spread, values = statistics(params)
        per_slide = lambda x: jnp.where(live, x, 0).sum((1, 2)) / live.sum((1, 2))
        mean = lambda x: per_slide(x).mean()
        ratio = jnp.where(live, now - log_p, 0)
        actor = -mean(surrogate(ratio, advantage, config.clip))
        actor -= config.entropy * mean(spread)
        critic = mean((values - target) ** 2)
        return actor + critic, (actor, critic)

    def epoch(carry, _):
        params, opt = carry
        grads, losses = jax.grad(loss, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), (losses, grads)

    start = params, tx.init(params)
    (params, _), (losses, grads) = lax.scan(epoch, start, length=config.epochs)
    return params, losses, grads
