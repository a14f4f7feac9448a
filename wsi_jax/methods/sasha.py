"""SASHA: see a slide at low resolution, and learn where to zoom (arXiv:2507.05077).

Three trainings in a row. `hafed`: attention over the children of every tile, and over
tiles, makes rows and verdicts of features at high resolution. `updater`: what a row is
like once a tile like it is seen closer. `policy`: which tile to zoom into next, by PPO,
rewarded with what the verdict gains. A verdict then takes the children of a tenth or a
fifth of the tiles; what other ways to choose as many would have said is told beside it.
"""

import dataclasses
import enum
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from wsi_jax.nets.hafed import HAFED, losses
from wsi_jax.nets.policy import Actor, Critic, Updater
from wsi_jax.ops import zoom
from wsi_jax.ops.choices import evenly, ranked
from wsi_jax.ops.episode import Slides, Update, greedy, play, sampler
from wsi_jax.ops.pooling import moments
from wsi_jax.ops.sampling import log_attention
from wsi_jax.ops.versions import verdicts
from wsi_jax.train import ppo
from wsi_jax.train.agent import Agent
from wsi_jax.train.flops import count_flops
from wsi_jax.train.optimiser import Optimiser, alone
from wsi_jax.train.ppo import PPO
from wsi_jax.train.supervised import supervised
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


class Choice(enum.Enum):
    """Which tiles are zoomed into.

    policy: one after another, those that the policy likes best.
    random: any.
    grid: evenly spread, row by row.
    low: those with the most attention when all are seen at low resolution.
    full: those with the most when all are seen at high resolution: an oracle.
    """

    policy = "policy"
    random = "random"
    grid = "grid"
    low = "low"
    full = "full"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """How a verdict is come by.

    Attributes:
        choice: of the tiles.
        tau: from which cosine on rows are updated; None as trained.
        zoomed_only: the verdict rests on the tiles that were zoomed into.
        share: of the tiles zoomed into; None as trained.
    """

    choice: Choice = Choice.policy
    tau: float | None = None
    zoomed_only: bool = False
    share: float | None = None


NEVER, EVERY = 2.0, -2.0  # cosines that no two rows have, and that all have
WAYS = {
    "random": Way(choice=Choice.random),
    "grid": Way(choice=Choice.grid),
    "low_attention": Way(choice=Choice.low),
    "oracle": Way(choice=Choice.full),
    "zoomed_only": Way(zoomed_only=True),
    "no_update": Way(tau=NEVER),
    "all_updated": Way(tau=EVERY),
    "low_resolution": Way(share=0.0),
    "full_resolution": Way(share=1.0),
}


@dataclasses.dataclass(kw_only=True)
class Course:
    """How long one of the stages is trained; the rest is as in `--config.train`.

    Attributes:
        steps: batches.
        batch: slides in a batch.
        validate_every: steps between two looks at the validation slides.
        optimiser: AdamW and its schedule.
    """

    steps: int = 2000
    batch: int = 4
    validate_every: int = 100
    optimiser: Optimiser = dataclasses.field(default_factory=Optimiser)

    def plan(self, **others: Any) -> dict[str, Any]:
        """Fields of `Train` that are the stage's own."""
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return mine | others


def _updater() -> Course:
    return Course(optimiser=Optimiser(learning_rate=1e-3, weight_decay=4e-4))


def _policy() -> Course:
    rates = {"learning_rate": 3e-4, "weight_decay": 1e-4, "clip_norm": 0.5}
    return Course(steps=1000, batch=8, optimiser=Optimiser(**rates))


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
        tau: cosine from which on a row is updated when another is zoomed into.
        once: a row is updated once at most.
        signed: opposite rows are unlike.
        standardise: shift and scale features by the statistics of the first batch, for
            encoders whose features vary little about a large mean; there the cosine of
            any two tiles is near 1.
        anchors: tiles of a slide that are zoomed into in one step of the updater's
            training.
        itself: whether the updater also learns from the row zoomed into, as the
            released code has it.
        clock: whether the critic sees how much of the episode is over.
        ppo: how the policy learns.
        hafed: its training.
        updater: its training.
        policy: its training; each batch is `ppo.epochs` updates.
        rows: updated at a time.
        dtype: of the matmuls.
    """

    children: int = 4
    share: float = 0.2
    branches: tuple[int, int] = (1, 5)
    top: tuple[int, int] = (10, 20)
    drop: float = 0.24
    tau: float = 0.95
    once: bool = True
    signed: bool = True
    standardise: bool = False
    anchors: int = 4
    itself: bool = False
    clock: bool = True
    ppo: PPO = dataclasses.field(default_factory=PPO)
    hafed: Course = dataclasses.field(default_factory=Course)
    updater: Course = dataclasses.field(default_factory=_updater)
    policy: Course = dataclasses.field(default_factory=_policy)
    rows: int = 16
    dtype: Dtype = Dtype.float32

    takes: ClassVar[Takes] = Takes.zooms
    way: ClassVar[str] = "policy"
    ways: ClassVar[str] = (
        "Tiles that are zoomed into, as many for all: chosen by the policy, at random, "
        "evenly, by their attention at low resolution, or at high (oracle)"
    )

    def validate(self) -> None:
        """Raises ValueError naming the flag that is wrong."""
        self.ppo.validate()
        if not 0 < self.share <= 1:
            raise ValueError(f"--config.method.share={self.share}: above 0, 1 at most")
        if not 0 <= self.drop < 1:
            raise ValueError(f"--config.method.drop={self.drop}: 0 or more, below 1")
        for name in ("anchors", "rows"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"--config.method.{name}={value}: 1 or more")

    def trained(self) -> "SASHA":
        """The method as its checkpoint needs it."""
        return self

    def stages(
        self, task: Task, tx: optax.GradientTransformation | None = None
    ) -> tuple[Stage, ...]:
        """Three stages, each with an optimiser of its own: `tx` is not used."""
        del tx
        net = _Net(self, task)
        make = lambda course, times=1: course.optimiser.make(times * course.steps)
        hafed, updater = (
            alone(name, make(getattr(self, name))) for name in ("hafed", "updater")
        )
        agent = make(self.policy, self.ppo.epochs)
        ways = {name: net.policy(agent, way) for name, way in WAYS.items()}
        return (
            Stage("hafed", net.hafed(hafed), plan=self.hafed.plan(), distil=net.distil),
            Stage(
                "updater",
                net.updater(updater),
                plan=self.updater.plan(monitor="-loss"),
                validate=net.validate_updater,
            ),
            Stage(
                "policy",
                net.policy(agent, Way()),
                plan=self.policy.plan(),
                others=ways,
                zoomer=net.zoomer() if self.share < 1 else None,
            ),
        )


surprise = optax.softmax_cross_entropy_with_integer_labels


class _Net:
    """The nets as pure functions of batches."""

    def __init__(self, config: SASHA, task: Task):
        self.config, self.classes = config, len(task.classes)

    # Each net is made for the features it meets, which no config tells.

    def of(self, x):
        """The nets for rows as long as these: HAFED, updater, actor, critic."""
        d, config, dtype = x.shape[-1], self.config, self.config.dtype.value
        hafed = HAFED(
            self.classes, d, config.branches, config.top, config.drop, dtype=dtype
        )
        agent = Actor(d, dtype=dtype), Critic(d, config.clock, dtype=dtype)
        return hafed, Updater(d, dtype=dtype), *agent

    # HAFED.

    def hafed(self, tx) -> Method:
        """Trained on the children of all tiles."""

        def init(key, batch):
            net, *_ = self.of(batch.x.low)
            one = jnp.zeros((1, 2, batch.x.low.shape[-1])), jnp.ones(1, bool)
            return {
                "standardise": self.statistics(batch),
                "hafed": net.init(key, *one),
            }

        def loss(params, batch, key):
            net, *_ = self.of(batch.x.low)
            high = self.standardised(params, batch.x.high)

            def one(key, high, mask, label):
                draws = net.uniforms(key, len(high)) if self.config.drop else None
                said = net.apply(params["hafed"], high, mask, draws)
                return losses(said, label, mask), said.logits

            keys = jax.random.split(key, len(batch.label))
            parts, logits = jax.vmap(one)(keys, high, batch.mask, batch.label)
            right = (logits.argmax(-1) == batch.label).astype(jnp.float32)
            return sum(parts), {"accuracy": right, "slide_loss": parts.slide}

        return supervised(init, loss, self.full, tx)

    def full(self, params, batch, key):
        """Verdict on all children."""
        del key
        net, *_ = self.of(batch.x.low)
        _, high = self.rows(params, batch.x)
        said = jax.vmap(lambda x, mask: self.classify(net, params, x, mask))(
            high, batch.mask
        )
        read = lambda x: net.apply(params["hafed"], x, method="rows")
        return Prediction(*said, self.counts(batch, batch.mask.sum(-1), read))

    def distil(self, params, x: Zooms) -> Zooms:
        """Rows of all tiles at both resolutions."""
        return Zooms(*self.rows(params, x))

    def classify(self, net, params, x, mask):
        """Logits [c] and attention [n] of one slide's rows."""
        said = net.apply(params["hafed"], x, mask, method="classify")
        return said.logits, said.attention.mean(0)

    # Features.

    def statistics(self, batch):
        """Mean and deviation of features [d], at both resolutions together."""
        x, d = batch.x, batch.x.low.shape[-1]
        # What has been distilled is standardised, and the stage before knows how.
        if not self.config.standardise or x.high.ndim == x.low.ndim:
            return {"mean": jnp.zeros(d), "std": jnp.ones(d)}
        b, _, k, _ = x.high.shape
        both = jnp.concatenate([x.low, x.high.reshape(b, -1, d)], 1)
        masks = jnp.concatenate([batch.mask, batch.mask.repeat(k, 1)], 1)
        mean, std = moments(both, masks)
        return {"mean": mean, "std": std}

    def standardised(self, params, x):
        """Features [*n d] as the nets meet them."""
        known = jax.lax.stop_gradient(params["standardise"])
        return (x.astype(known["mean"].dtype) - known["mean"]) / known["std"]

    def rows(self, params, x: Zooms):
        """Rows [b n d] at low and at high resolution; of distilled ones, themselves."""
        if x.high.ndim == x.low.ndim:
            return x.low, x.high
        low, high = (self.standardised(params, a) for a in x)
        net, *_ = self.of(low)
        high, _ = net.apply(params["hafed"], high, method="aggregate")
        return low, high

    # The updater.

    def updater(self, tx) -> Method:
        """Trained to tell rows at high resolution from a zoom into one like them."""

        def init(key, batch):
            keys = jax.random.split(key)
            params = self.hafed(optax.identity()).init(keys[0], batch).params
            _, net, *_ = self.of(batch.x.low)
            d = batch.x.low.shape[-1]
            one = jnp.zeros(d), jnp.zeros(d), jnp.zeros((1, d))
            return params | {"updater": net.init(keys[1], *one)}

        def loss(params, batch, key):
            error = self.errors(params, batch, key, self.config.anchors)
            return error, {}

        return supervised(init, loss, self.full, tx)

    def validate_updater(self, params, batch, key):
        """The same, with many tiles zoomed into, ever the same ones."""
        return {"loss": self.errors(params, batch, key, 16 * self.config.anchors)}

    def errors(self, params, batch, key, anchors):
        """Mean squared error of the updated rows [b]."""
        _, net, *_ = self.of(batch.x.low)
        low, high = self.rows(params, batch.x)

        def one(key, z, v, mask):
            chance = jnp.where(mask, 0.0, -jnp.inf)
            chance = chance.at[0].set(jnp.where(mask.any(), chance[0], 0.0))
            units = zoom.unit(z)

            def zoomed(i):
                cos = jnp.matmul(units, units[i], precision="highest")
                cos = cos if self.config.signed else jnp.abs(cos)
                alike = (cos >= self.config.tau) & mask
                if not self.config.itself:
                    alike &= jnp.arange(len(z)) != i
                told = net.apply(params["updater"], v[i], z[i], z)
                wrong = ((told - v) ** 2).mean(-1)
                return jnp.where(alike, wrong, 0).sum(), alike.sum()

            which = jax.random.categorical(key, chance, shape=(anchors,))
            total, count = jax.lax.map(zoomed, which, batch_size=self.config.anchors)
            each = total / jnp.maximum(count, 1)
            return each.sum() / jnp.maximum((count > 0).sum(), 1)

        keys = jax.random.split(key, len(batch.label))
        return jax.vmap(one)(keys, low, high, batch.mask)

    # The policy.

    def policy(self, tx, way: Way) -> Method:
        """Trained by episodes on slides of which all is known."""
        tx = ppo.optimiser(tx, tx)
        config = self.config

        def init(key, batch):
            key, *keys = jax.random.split(key, 4)
            params = self.updater(optax.identity()).init(keys[0], batch).params
            _, _, actor, critic = self.of(batch.x.low)
            one = jnp.zeros((1, batch.x.low.shape[-1]))
            params |= {"actor": actor.init(keys[1], one)}
            params |= {"critic": critic.init(keys[2], one)}
            return TrainState(jnp.int32(0), params, tx.init(_agent(params)), key)

        def step(state, batch):
            params, known = _agent(state.params), state.params
            key = jax.random.fold_in(state.key, state.step)
            hafed, _, actor, critic = self.of(batch.x.low)
            slides = self.slides(known, batch, config.share)
            episodes = config.ppo.episodes
            keys = jax.random.split(key, (len(batch.label), episodes))
            agent = Agent.of(actor, critic)
            episode = self.play(known, slides, sampler(keys), config.share, episodes)
            classify = lambda x: hafed.apply(known["hafed"], x, method="rows")
            gained = ppo.experience(
                agent, params, classify, slides, batch.label, batch.weight, episode,
                config.ppo,
            )  # fmt: skip
            params, opt, metrics = ppo.improve(
                agent, tx, params, state.opt, gained, config.ppo
            )
            metrics = {name: values.mean() for name, values in metrics.items()}
            metrics["loss"] = metrics["actor_loss"] + metrics["critic_loss"]
            return TrainState(state.step + 1, known | params, opt, state.key), metrics

        def predict(params, batch, key):
            return self.verdict(params, batch, key, way)

        return Method(init, step, predict)

    def slides(self, params, batch, share) -> Slides:
        low, high = self.rows(params, batch.x)
        steps = (
            zoom.horizon(share, batch.mask.sum(-1))
            if share
            else jnp.zeros(len(batch.mask), jnp.int32)
        )
        return Slides.of(low, high, batch.mask, steps)

    def play(self, params, slides, choose, share, episodes, tau=None):
        """Episodes on slides of which all is known."""
        config = self.config
        _, updater, actor, _ = self.of(slides.z)
        return play(
            slides,
            Update.of(updater, params["updater"]),
            lambda x: actor.apply(params["actor"], x),
            choose,
            self.rules(tau),
            steps=_most(share, slides.z.shape[1]),
            episodes=episodes,
            chunk=config.rows,
        )

    def verdict(self, params, batch, key, way: Way):
        """Of one way to zoom."""
        share = self.config.share if way.share is None else way.share
        if share == 1:
            return self.full(params, batch, key)
        hafed, updater, actor, _ = self.of(batch.x.low)
        slides = self.slides(params, batch, share)
        read = lambda x: hafed.apply(params["hafed"], x, method="rows")
        judge = jax.vmap(lambda x, mask: self.classify(hafed, params, x, mask))
        if not share:
            said = judge(slides.z, slides.mask)
            return Prediction(*said, self.counts(batch, slides.horizon, read))
        scores = {
            Choice.random: lambda: jax.random.uniform(key, slides.mask.shape),
            Choice.grid: lambda: jax.vmap(evenly)(slides.mask, slides.horizon),
            Choice.low: lambda: judge(slides.z, slides.mask)[1],
            Choice.full: lambda: judge(slides.v, slides.mask)[1],
        }
        choose = greedy
        if way.choice is not Choice.policy:
            choose = ranked(scores[way.choice]()[:, None])
        update = Update.of(updater, params["updater"])
        episode = self.play(params, slides, choose, share, 1, way.tau)
        steps = episode.actions.shape[-1]
        zoomed = episode.zoomed_at[:, 0] < steps
        estimated = episode.estimated_at[:, 0] < steps
        rows = jnp.where(estimated[..., None], episode.estimated[:, 0], slides.z)
        rows = jnp.where(zoomed[..., None], slides.v, rows)
        said = judge(rows, zoomed if way.zoomed_only else slides.mask)
        chunk = self.config.ppo.chunk
        along = verdicts(read, slides, episode, steps=steps + 1, chunk=chunk)
        trace = {
            "order": episode.actions[:, 0],
            "steps": slides.horizon,
            "logits": along[:, 0],
        }
        act = lambda x: actor.apply(params["actor"], x)
        renew = lambda x: update.finish(update.row(x))
        counts = self.counts(batch, slides.horizon, read, act, renew)
        return Prediction(*said, counts, trace)

    def zoomer(self) -> Zoomer:
        """The policy's own way, where children are read when they are zoomed into."""

        def begin(params, low, mask):
            low = self.standardised(params, low)
            steps = zoom.horizon(self.config.share, mask.sum(-1))
            return jax.vmap(zoom.reset)(low, mask, steps)

        def likely(params, state):
            _, _, actor, _ = self.of(state.rows)
            left = state.mask & ~state.visited & (state.step < state.horizon)[:, None]
            logits = actor.apply(params["actor"], state.rows)
            return jax.vmap(log_attention)(logits, left)

        def step(params, state, tile, children):
            hafed, updater, *_ = self.of(state.rows)
            children = self.standardised(params, children)
            v, _ = hafed.apply(params["hafed"], children, method="aggregate")
            update = lambda *x: updater.apply(params["updater"], *x)
            move = lambda *x: zoom.step(*x, update, self.rules())[0]
            return jax.vmap(move)(state, tile, v)

        def end(params, state):
            hafed, *_ = self.of(state.rows)
            judge = lambda x, mask: self.classify(hafed, params, x, mask)
            return jax.vmap(judge)(state.rows, state.mask)

        return Zoomer(begin, likely, step, end)

    def rules(self, tau=None) -> zoom.Rules:
        """Of the environment, with another `tau` where one is given."""
        return zoom.Rules(
            tau=self.config.tau if tau is None else tau,
            once=self.config.once,
            signed=self.config.signed,
        )

    def counts(self, batch, zooms, *scored):
        """Tiles read, and FLOPs where each of `scored` sees every row once."""
        row = jax.ShapeDtypeStruct((1, batch.x.low.shape[-1]), jnp.float32)
        each, tiles = sum(count_flops(f, row) for f in scored), batch.mask.sum(-1)
        return {
            "tiles": tiles + self.config.children**2 * zooms,
            "flops": tiles.astype(jnp.float32) * each,
        }


def _agent(params):
    """What the policy's training changes."""
    return {name: params[name] for name in ("actor", "critic")}


def _most(share, n):
    """Steps on the fullest slide of `n` tiles."""
    return max(1, math.ceil(share * n - 1e-3))
