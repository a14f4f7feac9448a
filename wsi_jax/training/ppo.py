"""Proximal policy optimisation of a policy that zooms (Schulman et al. 2017).

A batch is `b` slides with `e` episodes of `t` steps on each. All of it is one program
that does not leave the device.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from wsi_jax.config_fields import COUNT, POSITIVE, FieldError
from wsi_jax.ops.advantages import Reward, advantages, normalise, rewards, surrogate
from wsi_jax.ops.episode import Episode, TwoLevelSlides, play, sampler
from wsi_jax.ops.episode_states import state_logits
from wsi_jax.ops.slide_keys import slide_keys
from wsi_jax.ops.zoom_strategies import Strategy
from wsi_jax.training.actor_critic import Agent, evaluate_policy
from wsi_jax.training.loop import StageConfig
from wsi_jax.training.mesh import on_each_device, spread_over_devices
from wsi_jax.training.optimiser import Optimiser
from wsi_jax.training.zoom_prediction import ZoomPrediction
from wsi_jax.types import Method, TrainState


@dataclasses.dataclass(kw_only=True)
class PPO(StageConfig):
    """How a policy learns from episodes; a batch makes `epochs` updates.

    Attributes:
        episodes: episodes played on each slide before each update.
        epochs: gradient steps of an update, each on all steps of all its episodes.
        clip: how far the ratio of probabilities may go from 1 and still gain.
        gamma: discount of rewards.
        gae_lambda: decay of later errors in the advantages.
        entropy: weight of the policy's entropy.
        reward: reward of a step.
        mask_visited: whether the new policy, like the old, never returns to a tile. The
            released code compares an unmasked policy with a masked one.
        chunk: states evaluated at a time.
    """

    episodes: int = 2
    epochs: int = 4
    clip: float = 0.2
    gamma: float = 1.0
    gae_lambda: float = 0.94
    entropy: float = 0.001
    reward: Reward = Reward.gain
    mask_visited: bool = True
    chunk: int = 25
    steps: int = 1000
    batch: int = 8
    optimiser: Optimiser = dataclasses.field(
        default_factory=lambda: Optimiser(
            learning_rate=3e-4, weight_decay=1e-4, clip_norm=0.5
        )
    )

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **StageConfig.bounds,
        **dict.fromkeys(("episodes", "epochs", "chunk"), COUNT),
        **dict.fromkeys(("gamma", "gae_lambda"), (0, 1)),
        "clip": (POSITIVE, math.inf),
    }

    def validate(self) -> None:
        """Refuses an optimiser that accumulates over batches."""
        super().validate()
        if self.optimiser.accumulate > 1:
            raise FieldError(
                "optimiser.accumulate",
                "each batch makes epochs updates, and these would be accumulated in "
                "place of batches; raise the batch instead",
            )


class Experience(NamedTuple):
    """Episodes and what is learnt from them; constants.

    Attributes:
        live: [b e t], True for steps that were taken.
        log_p: [b e t], log-probabilities of the actions when they were taken.
        advantage: [b e t], normalised over a slide's episodes.
        target: [b e t], the critic's targets.
        gain: [b e], what the classifier's loss fell by in an episode.
    """

    slides: TwoLevelSlides
    episode: Episode
    live: Bool[Array, "b e t"]
    log_p: Float[Array, "b e t"]
    advantage: Float[Array, "b e t"]
    target: Float[Array, "b e t"]
    gain: Float[Array, "b e"]
    weight: Float[Array, " b"]


def optimiser(
    actor: optax.GradientTransformation, critic: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Actor and critic apart, each with its own moments and gradient norm."""
    labels = {"actor": "actor", "critic": "critic"}
    return optax.partition({"actor": actor, "critic": critic}, labels)


def experience(
    agent: Agent,
    params: PyTree,
    classify: Callable,
    slides: TwoLevelSlides,
    label: Int[Array, " b"],
    weight: Float[Array, " b"],
    episode: Episode,
    config: PPO,
) -> Experience:
    """Rewards, advantages and targets of episodes.

    Args:
        params: their parameters when the episodes were played.
        classify: rows [*m d] -> (scores [*m k], values [*m c]); its loss is to fall.
    """
    steps = episode.actions.shape[-1]
    live = jnp.arange(steps)[None] < slides.horizon[:, None]
    live = jnp.broadcast_to(live[:, None], episode.actions.shape)
    logits = state_logits(
        classify, slides, episode, steps=steps + 1, chunk=config.chunk
    )
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    losses = cross_entropy(
        logits, jnp.broadcast_to(label[:, None, None], logits.shape[:-1])
    )
    old = evaluate_policy(
        agent, params, slides, episode, masked=True, chunk=config.chunk
    )
    advantage = advantages(
        rewards(losses, config.reward),
        old.value,
        live,
        gamma=config.gamma,
        lam=config.gae_lambda,
    )
    return Experience(
        slides=slides,
        episode=episode,
        live=live,
        log_p=old.log_p,
        advantage=jax.vmap(normalise)(advantage, live),
        target=advantage + old.value,
        gain=losses[..., 0] - losses[..., -1],
        weight=weight,
    )


def loss(
    agent: Agent,
    params: PyTree,
    experience: Experience,
    config: PPO,
    count: Float[Array, ""],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Loss of actor and critic, which share no parameter; and each as a metric.

    Args:
        count: slides by which sums are divided: those of all devices, not of this one.
    """
    slides, episode, live = experience.slides, experience.episode, experience.live
    new = evaluate_policy(
        agent, params, slides, episode, masked=config.mask_visited, chunk=config.chunk
    )

    def mean(x):
        """Mean over a slide's steps, then weighted over slides."""
        each = jnp.where(live, x, 0).sum((1, 2)) / jnp.maximum(live.sum((1, 2)), 1)
        return (each * experience.weight).sum() / count

    log_ratio = jnp.where(live, new.log_p - experience.log_p, 0)
    gain = mean(surrogate(log_ratio, experience.advantage, config.clip))
    entropy = mean(new.entropy)
    actor = -gain - config.entropy * entropy
    critic = mean((new.value - experience.target) ** 2)
    metrics = {"actor_loss": actor, "critic_loss": critic, "entropy": entropy}
    return actor + critic, metrics


def improve(
    agent: Agent,
    tx: optax.GradientTransformation,
    params: PyTree,
    opt: PyTree,
    experience: Experience,
    config: PPO,
    total: Callable = lambda tree: tree,
) -> tuple[PyTree, PyTree, dict[str, Float[Array, " epochs"]]]:
    """Parameters and optimiser's state after learning; metrics of each epoch.

    Args:
        total: sums a tree over devices.
    """
    real = experience.weight > 0
    count, gain = total((real.sum(), (experience.gain.mean(1) * real).sum()))
    count = jnp.maximum(count, 1).astype(gain.dtype)

    def epoch(carry, _):
        params, opt = carry
        loss_of = lambda params: loss(agent, params, experience, config, count)
        grads, metrics = total(jax.grad(loss_of, has_aux=True)(params))
        updates, opt = tx.update(grads, opt, params)
        for name in ("actor", "critic"):
            metrics[f"{name}_grad_norm"] = optax.tree.norm(grads[name])
        return (optax.apply_updates(params, updates), opt), metrics

    (params, opt), metrics = lax.scan(epoch, (params, opt), length=config.epochs)
    return params, opt, metrics | {"gain": gain / count}


def policy_method(
    init_nets: Callable, prediction: ZoomPrediction, strategy: Strategy, config: PPO
) -> Method:
    """The Method of a policy on slides read at both resolutions.

    Args:
        init_nets: (key, batch) -> parameters of all nets but actor and critic, which
            are not trained.
        prediction: predicts, and has the nets and the rules of the environment.
    """
    tx = optimiser(*[config.make_optimiser(config.epochs)] * 2)

    def init(key, batch):
        key, *keys = jax.random.split(key, 4)
        nets = prediction.nets(batch.x.low)
        agent = {
            "actor": nets.init("actor", keys[1]),
            "critic": nets.init("critic", keys[2]),
        }
        params = init_nets(jax.random.split(keys[0])[1], batch) | agent
        return TrainState(jnp.int32(0), params, tx.init(agent), key)

    def step(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        split = batch, slide_keys(key, len(batch.target))
        state, metrics = on_each_device(learn, state, split)
        return state._replace(opt=spread_over_devices(state.opt)), metrics

    def learn(state, split, total):
        batch, keys = split
        params, nets = state.params, prediction.nets(batch.x.low)
        keys = jax.vmap(lambda key: jax.random.split(key, config.episodes))(keys)
        slides, steps = prediction.slides(params, batch)
        episode = play(
            slides, nets.row_updater(params), lambda x: nets.act(params, x),
            sampler(keys), prediction.rules, steps=steps, episodes=config.episodes,
            chunk=prediction.chunk,
        )  # fmt: skip
        agent = Agent.from_modules(nets.actor, nets.critic)
        learnt = {name: params[name] for name in ("actor", "critic")}
        gained = experience(
            agent, learnt, lambda x: nets.row_logits(params, x), slides,
            batch.target, batch.weight, episode, config,
        )  # fmt: skip
        learnt, opt, metrics = improve(
            agent, tx, learnt, state.opt, gained, config, total
        )
        metrics = {name: values.mean() for name, values in metrics.items()}
        metrics["loss"] = metrics["actor_loss"] + metrics["critic_loss"]
        return TrainState(state.step + 1, params | learnt, opt, state.key), metrics

    def predict(params, batch, key):
        act = prediction.nets(batch.x.low).act
        return prediction.by(strategy, params, batch, key, act)

    return Method(init, step, predict)
