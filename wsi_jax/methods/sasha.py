"""SASHA: see a slide at low resolution, and learn where to zoom (arXiv:2507.05077).

Three trainings in a row. `hafed`: attention over the children of every tile, and over
tiles, makes rows and verdicts of features at high resolution. `updater`: what a row is
like once a tile like it is seen closer. `policy`: which tile to zoom into next, by PPO,
rewarded with what the verdict gains. A verdict then takes the children of a tenth or a
fifth of the tiles; what other ways to choose as many would have said is told beside it.
One of these is learnt too: `ranking` is taught HAFED's attention, and chooses at once;
a policy that is `warm` begins with it.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wsi_jax.nets.hafed import HAFED
from wsi_jax.nets.policy import Actor, Critic, Updater
from wsi_jax.nets.sasha import ZoomNets, is_distilled, policy_zoomer
from wsi_jax.nets.sasha_losses import (
    hafed_loss,
    partial_zoom_loss,
    ranking_loss,
    updater_loss,
)
from wsi_jax.ops import zoom_env
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.ops.episode import Slides, play, sampler
from wsi_jax.ops.pooling import feature_moments
from wsi_jax.ops.zoom_strategies import AT_ONCE, STRATEGIES, Strategy, rollout
from wsi_jax.training import ppo
from wsi_jax.training.actor_critic import Agent
from wsi_jax.training.flops import count_flops
from wsi_jax.training.loop import StageConfig
from wsi_jax.training.optimiser import Optimiser, alone
from wsi_jax.training.ppo import PPO
from wsi_jax.training.supervised import plain_mean, supervised
from wsi_jax.types import (
    Dtype,
    Method,
    Prediction,
    Stage,
    Takes,
    Task,
    TrainState,
    Zoomer,
    Zooms,
)


def _updater() -> StageConfig:
    return StageConfig(optimiser=Optimiser(learning_rate=1e-3, weight_decay=4e-4))


def _policy() -> StageConfig:
    rates = {"learning_rate": 3e-4, "weight_decay": 1e-4, "clip_norm": 0.5}
    return StageConfig(steps=1000, batch=8, optimiser=Optimiser(**rates))


@dataclasses.dataclass(kw_only=True)
class SASHA:
    """A policy that zooms into a share of the tiles, learnt on top of HAFED.

    Tiles are those of the run's grid; their children have its side in pixels, at a
    `children`-th of its um/px.

    Attributes:
        children: to a side of a tile.
        share: of the tiles that are zoomed into.
        branches: attentions over children, and over tiles.
        top: the best children, and tiles, of which training masks some.
        drop: share of these.
        mixed: weight of a second loss of HAFED, on slides of which a share is seen at
            high resolution, as it will have to judge them. The paper has none.
        tau: cosine from which on a row is updated when another is zoomed into.
        once: a row is updated once at most. Training has no other way.
        signed: opposite rows are unlike.
        standardise: shift and scale features by the statistics of the first batch, for
            encoders whose features vary little about a large mean; there the cosine of
            any two tiles is near 1.
        anchors: tiles of a slide that are zoomed into in one step of the updater's
            training.
        itself: whether the updater also learns from the row zoomed into, as the
            released code has it.
        warm: the policy begins with the net that ranks tiles by what HAFED's attention
            at high resolution would be, not with one that knows nothing. The paper's
            begins with nothing.
        clock: whether the critic sees how much of the episode is over.
        ppo: how the policy learns.
        hafed: its training.
        updater: its training, and that of the ranking, which learns from the same rows.
        policy: its training; each batch is `ppo.epochs` updates.
        rows: updated at a time.
        dtype: of the matmuls.
        normaliser: how logits of HAFED's attentions become weights; what is published
            is the softmax, and sparsemax is refused.
    """

    children: int = 4
    share: float = 0.2
    branches: tuple[int, int] = (1, 5)
    top: tuple[int, int] = (10, 20)
    drop: float = 0.24
    mixed: float = 0.0
    tau: float = 0.95
    once: bool = True
    signed: bool = True
    standardise: bool = False
    anchors: int = 4
    itself: bool = False
    warm: bool = False
    clock: bool = True
    ppo: PPO = dataclasses.field(default_factory=PPO)
    hafed: StageConfig = dataclasses.field(default_factory=StageConfig)
    updater: StageConfig = dataclasses.field(default_factory=_updater)
    policy: StageConfig = dataclasses.field(default_factory=_policy)
    rows: int = 16
    dtype: Dtype = Dtype.float32
    normaliser: Normaliser = Normaliser.softmax

    takes: ClassVar[Takes] = Takes.zooms
    way: ClassVar[str] = "policy"
    ways: ClassVar[str] = (
        "Tiles that are zoomed into, as many for all: chosen by the policy, at once by "
        "a net that was taught their attention at high resolution (ranking), at "
        "random, evenly, by their attention at low resolution, or at high (oracle)"
    )

    def validate(self) -> None:
        """Raises ValueError naming the flag that is wrong."""
        self.ppo.validate()
        if (several := self.policy.optimiser.accumulate) > 1:
            raise ValueError(
                f"--config.method.policy.optimiser.accumulate={several}: a batch is "
                "learnt from ppo.epochs times, and these would be put together in "
                "place of batches; set --config.method.policy.batch instead"
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"--config.method.share={self.share}: above 0, 1 at most")
        if not 0 <= self.drop < 1:
            raise ValueError(f"--config.method.drop={self.drop}: 0 or more, below 1")
        for name in ("anchors", "rows", "branches", "top"):
            value = getattr(self, name)
            if min(np.atleast_1d(value)) < 1:
                raise ValueError(f"--config.method.{name}={value}: 1 or more")
        if not self.once:
            raise ValueError(
                "--config.method.once=False: episodes are learnt from rows that change "
                "once; the verdict all_updated of every run has rows updated again"
            )
        if self.normaliser is Normaliser.sparsemax:
            raise ValueError(
                "--config.method.normaliser=sparsemax: an episode is judged by weights "
                "that each row has by itself, and a sparsemax weight rests on all the "
                "others; any other normaliser will do"
            )

    def trained(self) -> "SASHA":
        """The method as its checkpoint needs it."""
        return self

    def stages(
        self, task: Task, tx: optax.GradientTransformation | None = None
    ) -> tuple[Stage, ...]:
        """Stages in a row, each with an optimiser of its own: `tx` is not used."""
        del tx
        made = _Stages(self, task)
        own = lambda course, times=1: course.optimiser.make(times * course.steps)
        agent = own(self.policy, self.ppo.epochs)
        return (
            Stage(
                "hafed",
                made.hafed(alone("hafed", own(self.hafed))),
                overrides=self.hafed.overrides(),
                distil=made.distil,
            ),
            Stage(
                "updater",
                made.updater(alone("updater", own(self.updater))),
                overrides=self.updater.overrides(monitor="-loss"),
                validate=made.validate_updater,
            ),
            Stage(
                "ranking",
                made.ranking(alone(made.ranks, own(self.updater))),
                overrides=self.updater.overrides(monitor="-loss"),
                validate=made.validate_ranking,
                baseline=True,
                inherited=self.warm,
            ),
            Stage(
                "policy",
                made.policy(agent, Strategy()),
                overrides=self.policy.overrides(),
                alternatives={
                    name: made.policy(agent, way) for name, way in STRATEGIES.items()
                },
                zoomer=made.zoomer(),
            ),
        )


class _Stages:
    """The trainings, and the verdicts of each, as pure functions of batches."""

    def __init__(self, config: SASHA, task: Task):
        self.config, self.classes = config, len(task.classes)
        # What the policy finds among the parameters by its name, it begins with.
        self.ranks = "actor" if config.warm else "ranking"

    def nets(self, rows) -> ZoomNets:
        """Made for the features they meet, whose number no config tells."""
        d, config, dtype = rows.shape[-1], self.config, self.config.dtype.value
        how = {"dtype": dtype}
        attention = {"top": config.top, "mask_rate": config.drop}
        attention |= {"normaliser": config.normaliser}
        return ZoomNets(
            HAFED(self.classes, d, config.branches, **attention, **how),
            Updater(d, **how),
            Actor(d, **how),
            Critic(d, config.clock, **how),
        )

    def rules(self) -> zoom_env.Rules:
        """Of the environment."""
        config = self.config
        return zoom_env.Rules(tau=config.tau, once=config.once, signed=config.signed)

    # HAFED.

    def hafed(self, tx) -> Method:
        """Trained on the children of all tiles."""

        def init(key, batch):
            known = self.statistics(batch)
            nets = self.nets(batch.x.low)
            return {"standardise": known, "hafed": nets.init("hafed", key)}

        def loss(params, batch, key):
            nets = self.nets(batch.x.low)
            total, metrics = hafed_loss(nets, params, batch, key)
            if self.config.mixed:
                mixed = partial_zoom_loss(nets, params, batch, key)
                metrics["partial_zoom_loss"] = mixed
                total += self.config.mixed * mixed
            return total, metrics

        return supervised(init, loss, self.full, tx)

    def statistics(self, batch):
        """Mean and deviation of features [d], at both resolutions together."""
        x, d = batch.x, batch.x.low.shape[-1]
        # What has been distilled is standardised, and the stage before knows how.
        if not self.config.standardise or is_distilled(x):
            return {"mean": jnp.zeros(d), "std": jnp.ones(d)}
        b, _, k, _ = x.high.shape
        both = jnp.concatenate([x.low, x.high.reshape(b, -1, d)], 1)
        masks = jnp.concatenate([batch.mask, batch.mask.repeat(k, 1)], 1)
        mean, std = feature_moments(both, masks)
        return {"mean": mean, "std": std}

    def distil(self, params, x: Zooms) -> Zooms:
        """Rows of all tiles at both resolutions."""
        return self.nets(x.low).rows(params, x)

    def full(self, params, batch, key):
        """Verdict on all children."""
        del key
        return self.whole(params, batch, high=True)

    def whole(self, params, batch, high: bool):
        """Verdict on all tiles, seen at one resolution."""
        nets = self.nets(batch.x.low)
        rows = nets.rows(params, batch.x)
        said = nets.classify(params, rows.high if high else rows.low, batch.mask)
        zooms = high * batch.mask.sum(-1)
        read = lambda x: nets.row_logits(params, x)
        return Prediction(*said, self.counts(batch, zooms, read))

    # The updater.

    def updater(self, tx) -> Method:
        """Trained to tell rows at high resolution from a zoom into one like them."""

        def init(key, batch):
            keys = jax.random.split(key)
            params = self.hafed(optax.identity()).init(keys[0], batch).params
            nets = self.nets(batch.x.low)
            return params | {"updater": nets.init("updater", keys[1])}

        def loss(params, batch, key):
            return self.errors(params, batch, key, self.config.anchors), {}

        return supervised(init, loss, self.full, tx)

    def validate_updater(self, params, batch, key):
        """The same, with many tiles zoomed into, ever the same ones."""
        return {"loss": self.errors(params, batch, key, 16 * self.config.anchors)}

    def errors(self, params, batch, key, anchors):
        """Mean squared error of the updated rows [b]."""
        config = self.config
        return updater_loss(
            self.nets(batch.x.low), params, batch, key, self.rules(),
            anchors=anchors, itself=config.itself, chunk=config.anchors,
        )  # fmt: skip

    # What the policy is held against: one that ranks tiles at once.

    def ranking(self, tx) -> Method:
        """Trained to tell HAFED's attention from low resolution."""

        def init(key, batch):
            keys = jax.random.split(key)
            params = self.updater(optax.identity()).init(keys[0], batch).params
            nets = self.nets(batch.x.low)
            return params | {self.ranks: nets.init("actor", keys[1])}

        def loss(params, batch, key):
            del key
            return self.astray(params, batch), {}

        def predict(params, batch, key):
            return self.verdict(params, batch, key, AT_ONCE, self.rank(batch.x.low))

        return supervised(init, loss, predict, tx)

    def validate_ranking(self, params, batch, key):
        """The same, on slides it has not learnt from."""
        del key
        return {"loss": self.astray(params, batch)}

    def astray(self, params, batch):
        """How far the ranking is from HAFED's attention [b]."""
        nets, rank = self.nets(batch.x.low), self.rank(batch.x.low)
        return ranking_loss(nets, params, batch, rank)

    def rank(self, rows):
        """(params, rows [*m d]) -> logit of each tile, at once and for good."""
        act = self.nets(rows).act
        return lambda params, x: act({"actor": params[self.ranks]}, x)

    # The policy.

    def policy(self, tx, way: Strategy) -> Method:
        """Trained by episodes on slides of which all is known."""
        tx = ppo.optimiser(tx, tx)
        config = self.config

        def init(key, batch):
            key, *keys = jax.random.split(key, 4)
            params = self.updater(optax.identity()).init(keys[0], batch).params
            nets = self.nets(batch.x.low)
            params |= {"actor": nets.init("actor", keys[1])}
            params |= {"critic": nets.init("critic", keys[2])}
            return TrainState(jnp.int32(0), params, tx.init(_agent(params)), key)

        def step(state, batch):
            params, known = _agent(state.params), state.params
            key = jax.random.fold_in(state.key, state.step)
            nets = self.nets(batch.x.low)
            slides, steps = self.slides(known, batch, config.share)
            episodes = config.ppo.episodes
            keys = jax.random.split(key, (len(batch.target), episodes))
            agent = Agent.of(nets.actor, nets.critic)
            act = lambda x: nets.act(known, x)
            episode = play(
                slides, nets.row_updater(known), act, sampler(keys), self.rules(),
                steps=steps, episodes=episodes, chunk=config.rows,
            )  # fmt: skip
            gained = ppo.experience(
                agent, params, lambda x: nets.row_logits(known, x), slides,
                batch.target, batch.weight, episode, config.ppo,
            )  # fmt: skip
            params, opt, metrics = ppo.improve(
                agent, tx, params, state.opt, gained, config.ppo
            )
            metrics = {name: values.mean() for name, values in metrics.items()}
            metrics["loss"] = metrics["actor_loss"] + metrics["critic_loss"]
            metrics["gain"] = plain_mean(gained.gain.mean(1), batch.weight)
            return TrainState(state.step + 1, known | params, opt, state.key), metrics

        def predict(params, batch, key):
            return self.verdict(params, batch, key, way, self.nets(batch.x.low).act)

        return Method(init, step, predict)

    def zoomer(self) -> Zoomer | None:
        """The policy's own way, where it need not read all."""
        share = self.config.share
        return policy_zoomer(self.nets, share, self.rules()) if share < 1 else None

    def slides(self, params, batch, share) -> tuple[Slides, int]:
        """Slides to play on, and the steps on the fullest there could be."""
        rows = self.nets(batch.x.low).rows(params, batch.x)
        steps = zoom_env.horizon(share, batch.mask.sum(-1))
        most = max(1, math.ceil(zoom_env.as_ratio(share) * batch.mask.shape[1]))
        return Slides.of(*rows, batch.mask, steps), most

    def verdict(self, params, batch, key, way: Strategy, liking):
        """Of one way to zoom, by what `liking` makes of (params, rows)."""
        share = self.config.share if way.share is None else way.share
        if share in (0, 1):
            return self.whole(params, batch, high=share == 1)
        nets, update = (
            self.nets(batch.x.low),
            self.nets(batch.x.low).row_updater(params),
        )
        slides, steps = self.slides(params, batch, share)
        act = lambda x: liking(params, x)
        read = lambda x: nets.row_logits(params, x)
        known = rollout(
            way, slides, update, act, read, self.rules(), key,
            steps=steps, chunk=self.config.rows, states=self.config.ppo.chunk,
        )  # fmt: skip
        trace = {"order": known.order, "steps": slides.horizon, "logits": known.logits}
        renew = lambda x: update.output_layers(update.row_terms(x))
        passes = 1 if way.rules(self.rules()).once else slides.horizon
        counts = self.counts(batch, slides.horizon, read, act, renew, passes=passes)
        said = nets.classify(params, known.rows, known.mask)
        return Prediction(*said, counts, trace)

    def counts(self, batch, zooms, *scored, passes=1):
        """Tiles read, and FLOPs where each of `scored` sees every row so often."""
        row = jax.ShapeDtypeStruct((1, batch.x.low.shape[-1]), jnp.float32)
        each, tiles = sum(count_flops(f, row) for f in scored), batch.mask.sum(-1)
        return {
            "tiles": tiles + self.config.children**2 * zooms,
            "flops": tiles.astype(jnp.float32) * each * passes,
        }


def _agent(params):
    """What the policy's training changes."""
    return {name: params[name] for name in ("actor", "critic")}
