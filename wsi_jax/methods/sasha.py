"""SASHA: read a slide at low resolution, and learn where to zoom (arXiv:2507.05077).

Three trainings in a row. `hafed` classifies slides at high resolution: attention over
the children of a tile makes its row, attention over tiles classifies the rows.
`updater` predicts how a row changes once a tile like it was zoomed into. `policy`
learns by PPO which tile to zoom into next, rewarded by the fall of the classifier's
loss. A prediction then reads the children of a tenth or a fifth of the tiles; those of
other strategies with as many zooms are reported beside it. One of them, `ranking`, is
learnt: it predicts HAFED's attention at high resolution and chooses all tiles at once.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from wsi_jax.config_fields import COUNT, FieldError
from wsi_jax.nets import sasha_losses
from wsi_jax.nets.hafed import HAFED
from wsi_jax.nets.policy import Actor, Critic, Updater
from wsi_jax.nets.sasha import ZoomNets, is_distilled, policy_rounds
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.ops.pooling import feature_moments
from wsi_jax.ops.slide_keys import slide_keys
from wsi_jax.ops.zoom_env import Rules
from wsi_jax.ops.zoom_strategies import AT_ONCE, STRATEGIES, Strategy
from wsi_jax.training import ppo
from wsi_jax.training.loop import StageConfig
from wsi_jax.training.optimiser import Optimiser, alone
from wsi_jax.training.supervised import supervised
from wsi_jax.training.zoom_prediction import ZoomPrediction
from wsi_jax.types import Dtype, Stage, Takes, Task


@dataclasses.dataclass(kw_only=True)
class HAFEDStage(StageConfig):
    """HAFED, and how long it is trained.

    Attributes:
        branches: numbers of attentions over children and over tiles.
        mask_top: numbers of the best children and tiles, some masked in training.
        mask_rate: share of these that is masked.
        partial_zoom_weight: weight of a second loss, on slides of which only a share is
            at high resolution, as in predictions. The paper has none.
        normaliser: how attention logits become weights; the paper's is the softmax.
    """

    branches: tuple[int, int] = (1, 5)
    mask_top: tuple[int, int] = (10, 20)
    mask_rate: float = 0.24
    partial_zoom_weight: float = 0.0
    normaliser: Normaliser = Normaliser.softmax

    def validate(self) -> None:
        """Refuses attentions of no branches or tiles, and sparsemax."""
        super().validate()
        for name in ("branches", "mask_top"):
            if min(getattr(self, name)) < 1:
                raise FieldError(name, "1 or more each")
        if not 0 <= self.mask_rate < 1:
            raise FieldError("mask_rate", "0 or more, below 1")
        if self.normaliser is Normaliser.sparsemax:
            raise FieldError(
                "normaliser",
                "episodes need weights that each row has by itself, and a sparsemax "
                "weight depends on all others; any other will do",
            )


@dataclasses.dataclass(kw_only=True)
class UpdaterStage(StageConfig):
    """The updater of rows, and how long it and the ranking are trained.

    Attributes:
        min_cosine: cosine from which a row is like the one zoomed into, and is updated.
        signed_cosine: whether opposite rows are unlike.
        anchors: tiles of a slide that are zoomed into in one step of training.
        include_self: whether the row zoomed into is learnt from too, as in the released
            code.
        rows: rows updated at a time.
    """

    min_cosine: float = 0.95
    signed_cosine: bool = True
    anchors: int = 4
    include_self: bool = False
    rows: int = 16
    optimiser: Optimiser = dataclasses.field(
        default_factory=lambda: Optimiser(learning_rate=1e-3, weight_decay=4e-4)
    )

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **StageConfig.bounds,
        **{"anchors": COUNT, "rows": COUNT},
    }


@dataclasses.dataclass(kw_only=True)
class PolicyStage(ppo.PPO):
    """The policy, and how it is trained by PPO.

    Attributes:
        init_from_ranking: start from the ranking; the paper's starts untrained.
        critic_clock: whether the critic knows how much of the episode is over.
    """

    init_from_ranking: bool = False
    critic_clock: bool = True


@dataclasses.dataclass(kw_only=True)
class SASHA:
    """A policy that zooms into a share of the tiles, learnt on top of HAFED.

    Tiles are those of the run's grid; their children have its side in pixels, at a
    `children`-th of its um/px.

    Attributes:
        children: children to a side of a tile.
        zoom_share: share of the tiles that are zoomed into.
        standardise: shift and scale features by the statistics of the first batch, for
            encoders whose features vary little about a large mean; there the cosine of
            any two tiles is near 1.
        dtype: type of the matmuls.
        hafed: the classifier.
        updater: the updater of rows.
        policy: the policy.
    """

    children: int = 4
    zoom_share: float = 0.2
    standardise: bool = False
    dtype: Dtype = Dtype.float32
    hafed: HAFEDStage = dataclasses.field(default_factory=HAFEDStage)
    updater: UpdaterStage = dataclasses.field(default_factory=UpdaterStage)
    policy: PolicyStage = dataclasses.field(default_factory=PolicyStage)

    takes: ClassVar[Takes] = Takes.two_levels
    strategy: ClassVar[str] = "policy"
    strategies_note: ClassVar[str] = (
        "Tiles that are zoomed into, as many for all: chosen by the policy, at once by "
        "a net that was taught their attention at high resolution (ranking), at "
        "random, evenly, by their attention at low resolution, or at high (oracle)"
    )

    def validate(self) -> None:
        """Refuses a share of no tiles, or of more than all."""
        if not 0 < self.zoom_share <= 1:
            raise FieldError("zoom_share", "above 0, 1 at most")

    def trained(self) -> "SASHA":
        """The method as its checkpoint needs it."""
        return self

    def stages(
        self, task: Task, tx: optax.GradientTransformation | None = None
    ) -> tuple[Stage, ...]:
        """Stages in a row, each with an optimiser of its own: `tx` is not used."""
        del tx
        made = _Stages(self, task)
        first = made.hafed_stage(), made.updater_stage()
        return *first, made.ranking_stage(), made.policy_stage()


class _Stages:
    """The trainings in a row, as pure functions of batches."""

    def __init__(self, config: SASHA, task: Task):
        self.config, self.classes = config, len(task.classes)
        updater = config.updater
        self.rules = Rules(tau=updater.min_cosine, signed=updater.signed_cosine)
        self.prediction = ZoomPrediction(
            self.nets, self.rules, config.zoom_share, config.children,
            chunk=updater.rows, states=config.policy.chunk,
        )  # fmt: skip

    def nets(self, rows) -> ZoomNets:
        """Nets for rows of as many features as these."""
        d, hafed, dtype = rows.shape[-1], self.config.hafed, self.config.dtype.value
        return ZoomNets(
            HAFED(
                self.classes, d, hafed.branches, top=hafed.mask_top,
                mask_rate=hafed.mask_rate, normaliser=hafed.normaliser, dtype=dtype,
            ),
            Updater(d, dtype=dtype),
            Actor(d, dtype=dtype),
            Critic(d, self.config.policy.critic_clock, dtype=dtype),
        )  # fmt: skip

    def init(self, key, batch, *trees):
        """Initial parameters of HAFED and of other nets, by the names of the trees."""
        nets = self.nets(batch.x.low)
        if not trees:
            statistics = self.statistics(batch)
            return {"standardise": statistics, "hafed": nets.init("hafed", key)}
        *earlier, tree = trees
        before, own = jax.random.split(key)
        params = self.init(jax.random.split(before)[1], batch, *earlier)
        return params | {tree: nets.init("actor" if tree == "ranking" else tree, own)}

    def statistics(self, batch):
        """Mean and deviation of features [d], at both resolutions together."""
        x, d = batch.x, batch.x.low.shape[-1]
        # Distilled rows are standardised already.
        if not self.config.standardise or is_distilled(x):
            return {"mean": jnp.zeros(d), "std": jnp.ones(d)}
        b, _, k, _ = x.high.shape
        both = jnp.concatenate([x.low, x.high.reshape(b, -1, d)], 1)
        masks = jnp.concatenate([batch.mask, batch.mask.repeat(k, 1)], 1)
        mean, std = feature_moments(both, masks)
        return {"mean": mean, "std": std}

    def hafed_stage(self) -> Stage:
        """The classifier, trained on the children of all tiles."""
        config = self.config.hafed

        def loss(params, batch, keys):
            nets = self.nets(batch.x.low)
            total, metrics = sasha_losses.hafed_loss(nets, params, batch, keys)
            if config.partial_zoom_weight:
                partial = sasha_losses.partial_zoom_loss(nets, params, batch, keys)
                metrics["partial_zoom_loss"] = partial
                total += config.partial_zoom_weight * partial
            return total, metrics

        tx, predict = alone("hafed", config.make_optimiser()), self.prediction.at_high
        return Stage(
            "hafed",
            supervised(self.init, loss, predict, tx),
            overrides=config.overrides(),
            distil=lambda params, x: self.nets(x.low).rows(params, x),
        )

    def updater_stage(self) -> Stage:
        """The updater, trained to predict rows at high resolution."""
        config = self.config.updater

        def loss(params, batch, keys, anchors=config.anchors):
            """Mean squared error of the updated rows [b]."""
            return sasha_losses.updater_loss(
                self.nets(batch.x.low), params, batch, keys, self.rules,
                anchors=anchors, itself=config.include_self, chunk=config.anchors,
            )  # fmt: skip

        measure = lambda *args: loss(*args, 16 * config.anchors)
        return self._by_loss(loss, measure, self.prediction.at_high, "updater")

    def ranking_stage(self) -> Stage:
        """The baseline that ranks all tiles at once, by HAFED's attention."""
        inherited = self.config.policy.init_from_ranking
        # The policy starts from a tree that has the name of its own.
        tree = "actor" if inherited else "ranking"

        def act(batch):
            actor = self.nets(batch.x.low).act
            return lambda params, x: actor({"actor": params[tree]}, x)

        def loss(params, batch, keys):
            """Divergence [b] of the ranking from HAFED's attention."""
            del keys
            return sasha_losses.attention_kl_loss(
                self.nets(batch.x.low), params, batch, act(batch)
            )

        def predict(params, batch, key):
            return self.prediction.by(AT_ONCE, params, batch, key, act(batch))

        stage = self._by_loss(loss, loss, predict, "updater", tree)
        return stage._replace(name="ranking", baseline=True, inherited=inherited)

    def _by_loss(self, loss, measure, predict, *trees) -> Stage:
        """A stage that trains the last of its trees, and is validated by a loss."""
        config = self.config.updater
        init = lambda key, batch: self.init(key, batch, *trees)
        tx = alone(trees[-1], config.make_optimiser())
        return Stage(
            trees[-1],
            supervised(init, lambda *args: (loss(*args), {}), predict, tx),
            overrides=config.overrides(monitor="-loss"),
            validate=lambda params, batch, key: {
                "loss": measure(params, batch, slide_keys(key, len(batch.target)))
            },
        )

    def policy_stage(self) -> Stage:
        """The policy, trained by episodes, and the other strategies."""
        config, share = self.config.policy, self.config.zoom_share
        init = lambda key, batch: self.init(key, batch, "updater")
        by = lambda strategy: ppo.policy_method(init, self.prediction, strategy, config)
        return Stage(
            "policy",
            by(Strategy()),
            overrides=config.overrides(),
            alternatives={name: by(strategy) for name, strategy in STRATEGIES.items()},
            # Where all tiles are read anyway, there is nothing to read on demand.
            rounds=policy_rounds(self.nets, share, self.rules) if share < 1 else None,
        )
