"""End-to-end attention pooling: score all tiles, keep the best and worst, pool them.

Liu, Zuo et al., Geomatics and Information Science of Wuhan University 49(7), 2024 (in
Chinese). A net that scores tiles is trained on the highest-scored tiles of each slide
under the slide's label; the tiles it scores highest and lowest then go, as pixels,
through a second net whose attention pooling normalises by a squared average. Of the
article only the abstract could be had, and the claims of the group's patent (US
12,008,076 B2): the formula of the squared average, both heads, the score 1 - p(normal)
where there are more than two classes, the joint mode and every default below are
choices of this package.

Two forms, equal but for the rounding of float32. The pure one takes slides that lie on
the device; the staged one (`train.sift`) reads tiles from slides on disk.
"""

import dataclasses
import enum
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import lax

from wsi_jax.nets.crop_classifier import CropOptions
from wsi_jax.nets.encoder import Encoder
from wsi_jax.nets.trunk import Trunk
from wsi_jax.ops.attention_weights import Normaliser, normalise
from wsi_jax.ops.crop_grid import CropGrid
from wsi_jax.training.flops import count_flops
from wsi_jax.training.loop import StageConfig
from wsi_jax.training.optimiser import alone, scale_learning_rate
from wsi_jax.training.resident import sifting_resident
from wsi_jax.training.tile_scorer import Candidates, Kept
from wsi_jax.training.tile_selection import sifting
from wsi_jax.types import Dtype, Prediction, Stage, Takes, Task, padded


class Pooling(enum.Enum):
    """How the features of the kept tiles become the slide's.

    attention: their sum, weighted by normalised gated attention.
    max: the greatest value of each; a tile's attention is the share that it gave.
    """

    attention = "attention"
    max = "max"


@dataclasses.dataclass(kw_only=True)
class AttentionPooling(CropOptions):
    """Two nets: one finds the tiles worth reading twice, one judges the slide by them.

    Tiles are the cells of the run's grid, read at `mpp`; a grid of tiles that abut has
    `grid.mpp * grid.size_px == mpp * tile_px`. The score of a tile is the log-odds of
    its not being of the first class.

    Attributes:
        scorer: trunk of the net that scores; trained from its weights if it has some.
            `trunk` is that of the net that judges; the other options are both's.
        mpp: um/px of the tiles.
        tile_px: side of a tile.
        learnt: the highest-scored tiles of a slide, from which the scorer learns.
        best: the highest-scored tiles of a slide that are judged.
        worst: the lowest-scored that are judged; 0 for the best alone.
        renew: steps of the scorer's training between two scorings of all tiles, which
            is an epoch where it is slides / batch.
        scoring: the scorer's training.
        joint: train both at once, in one stage: tiles are scored anew in each step.
        candidates: of these, drawn at random, are scored in a step of joint training.
        pooling: of the judged tiles.
        normaliser: of the attention.
        power: of the scores in it, where it is a squared average: 2, or another.
        attention: hidden width of the attention.
        score_chunk: tiles scored at a time.
        precision: of scoring; None for the scorer's own.
    """

    scorer: Trunk = dataclasses.field(default_factory=Encoder)
    mpp: float = 0.5
    tile_px: int = 224
    learnt: int = 8
    best: int = 64
    worst: int = 64
    renew: int = 50
    scoring: StageConfig = dataclasses.field(default_factory=StageConfig)
    joint: bool = False
    candidates: int = 256
    width: int = 128
    pooling: Pooling = Pooling.attention
    normaliser: Normaliser = Normaliser.squared_average
    power: float = 2.0
    attention: int = 64
    score_chunk: int = 256
    precision: Dtype | None = None
    chunk: int | None = 32

    takes: ClassVar[Takes] = Takes.crops
    overviews: ClassVar[bool] = False
    all_tiles: ClassVar[bool] = True

    def validate(self) -> None:
        """Raises ValueError naming the flag that is wrong."""
        counts = "tile_px", "learnt", "best", "renew", "candidates"
        self.check_counts(*counts, "attention", "score_chunk")
        if self.worst < 0:
            raise ValueError(f"--config.method.worst={self.worst}: 0 or more")
        if not self.power > 0:
            raise ValueError(f"--config.method.power={self.power:g}: above 0")
        if self.joint and self.learnt > self.best:
            raise ValueError(
                f"--config.method.learnt={self.learnt}: in joint training the scorer "
                f"learns from tiles that are judged, --config.method.best={self.best}"
            )

    def reads(self) -> tuple[float, ...]:
        """um/px at which slides are read besides the overview."""
        return (self.mpp,)

    def said(self, mpp: float) -> str:
        """What is read and learnt, in a sentence or two."""
        del mpp
        worst = f" and {self.worst} lowest" if self.worst else ""
        how = "jointly" if self.joint else "one after the other"
        return (
            f"Every tile of {self.tile_px} px at {self.mpp:g} um/px is scored; the "
            f"verdict rests on the {self.best} highest{worst}. Scorer and judge are "
            f"trained {how}, end to end on slide labels."
        )

    def trained(self) -> "AttentionPooling":
        """The method as its checkpoint needs it: without files of weights."""
        scorer = dataclasses.replace(self.scorer, weights="")
        return dataclasses.replace(super().trained(), scorer=scorer)

    def cells(self, mpp: float, cell_px: int) -> CropGrid:
        """Of overviews at `mpp` with cells of `cell_px`."""
        return CropGrid((self.mpp,), self.tile_px, mpp * cell_px, (1,))

    def stages(
        self,
        task: Task,
        tx: optax.GradientTransformation,
        mpp: float,
        cell_px: int,
    ) -> tuple[Stage, ...]:
        """The scorer's and the judge's, or one for both.

        Args:
            task: what is to be told apart; of its classes the first is normal.
            tx: the optimiser of the last stage; the scorer's own is in `scoring`.
            mpp: of overviews.
            cell_px: side of their cells, in pixels.
        """
        cells = self.cells(mpp, cell_px)
        form = sifting_resident if self.resident else sifting
        paces = lambda tx: scale_learning_rate("trunk", self.trunk_rate, tx)
        own = tx if self.joint else alone("judge", tx)
        judge = form(Judge(self, task, cells), paces(own))
        if self.joint:
            return (Stage("joint", judge),)
        own = self.scoring.optimiser.make(self.scoring.steps)
        scorer = form(Scorer(self, task, cells), paces(own))
        return (
            Stage("scorer", scorer, overrides=self.scoring.overrides()),
            Stage("judge", judge),
        )


cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Scorer:
    """Scores tiles, and learns from the best of them under the slide's label."""

    def __init__(self, config: AttentionPooling, task: Task, cells: CropGrid):
        self.config, self.cells, self.classes = config, cells, len(task.classes)
        self.renew, self.chunk = config.renew, config.score_chunk
        self.sizes = config.learnt, 0
        self.scoring = config.classifier(self.classes, trunk=config.scorer)
        self.fast = self.scoring
        if config.precision:
            trunk = dataclasses.replace(config.scorer, dtype=config.precision)
            self.fast = config.classifier(self.classes, trunk=trunk)

    def init(self, key):
        return {"scorer": self.scoring.init(key)}

    def begin(self, key, params, tiles, mask):
        which = jnp.zeros(mask.shape, jnp.int32)
        known = self.scoring.init_on_crops(key, params["scorer"], tiles, which, mask)
        return params | {"scorer": known}

    def scorer(self, params):
        return params["scorer"]

    def score(self, scorer, tiles):
        """Log-odds of tiles [n s s 3] not being normal: [n], rising with 1 - p."""
        logits = self._logits(self.fast, scorer, tiles[None])[0]
        return jax.nn.logsumexp(logits[:, 1:], -1) - logits[:, 0]

    def count(self, mask, train):
        del train
        return padded(int(mask.sum((1, 2)).max()), 16)

    def most(self, shape, train):
        del train
        return shape[0] * shape[1]

    def candidates(self, mask, key, n, train):
        """Every tile, row by row."""
        del key, train
        return _first(~mask.reshape(len(mask), -1), mask, n)

    def sift(self, scores, candidates):
        """The best, from the very best down, and the worst, from the very worst up."""
        best, worst = self.sizes
        n = candidates.mask.sum(1, keepdims=True)
        order = jnp.argsort(
            jnp.where(candidates.mask, -scores, jnp.inf), axis=1, stable=True
        )
        rank = jnp.arange(best + worst)[None]
        last = n - 1 - (rank - best)
        rank = jnp.where(rank < best, rank, last)
        # A tile that is among the best is not among the worst too.
        there = jnp.where(jnp.arange(best + worst)[None] < best, rank < n, last >= best)
        rank = jnp.clip(rank, 0, scores.shape[1] - 1)
        place = jnp.take_along_axis(order, rank, 1)
        index = jnp.take_along_axis(candidates.index, place, 1)
        return Kept(place, index, there)

    def loss(self, params, kept, tiles, label, key):
        tiles = self.config.augmented(key, tiles)
        return self._loss_of_scorer(params, kept.mask, tiles, label)

    def verdict(self, params, candidates, kept, tiles):
        """By the mean logits of the tiles from which the scorer would learn."""
        logits = self._logits(self.scoring, params["scorer"], tiles)
        weight = kept.mask / jnp.maximum(kept.mask.sum(1, keepdims=True), 1)
        said = jnp.einsum("bm,bmc->bc", weight, logits)
        return Prediction(said, _spread(weight, candidates, kept), {})

    def flops(self, params, tile):
        logits = lambda p, t: self._logits(self.scoring, p["scorer"], t[None])
        one = count_flops(logits, params, tile)
        return one, one

    def _logits(self, reader, scorer, tiles):
        """Of each tile by itself: [b n c]."""
        which, there = (jnp.full(tiles.shape[:2], one) for one in (0, True))
        h = reader.embed(scorer, tiles, which, there)
        flat = h.reshape(-1, h.shape[-1])
        logits = reader.head.apply(scorer["head"], flat, method="classify")
        return logits.reshape(*h.shape[:2], -1)

    def _loss_of_scorer(self, params, mask, tiles, label):
        logits = self._logits(self.scoring, params["scorer"], tiles)
        labels = jnp.broadcast_to(label[:, None], mask.shape)
        count = jnp.maximum(mask.sum(1), 1)
        mean = lambda values: jnp.where(mask, values, 0).sum(1) / count
        right = (logits.argmax(-1) == labels).astype(jnp.float32)
        return mean(cross_entropy(logits, labels)), {"tile_accuracy": mean(right)}


class Judge(Scorer):
    """Judges slides by the best and the worst of their tiles."""

    def __init__(self, config: AttentionPooling, task: Task, cells: CropGrid):
        super().__init__(config, task, cells)
        self.sizes, self.renew = (config.best, config.worst), 1
        self.reader = config.classifier(self.classes, attention_width=config.attention)

    def init(self, key):
        keys = jax.random.split(key)
        return super().init(keys[0]) | {"judge": self.reader.init(keys[1])}

    def begin(self, key, params, tiles, mask):
        keys = jax.random.split(key)
        params = super().begin(keys[0], params, tiles, mask)
        which = jnp.zeros(mask.shape, jnp.int32)
        judge = self.reader.init_on_crops(keys[1], params["judge"], tiles, which, mask)
        return params | {"judge": judge}

    def count(self, mask, train):
        n = super().count(mask, train)
        return min(n, self.config.candidates) if self._some(train) else n

    def most(self, shape, train):
        n = super().most(shape, train)
        return min(n, self.config.candidates) if self._some(train) else n

    def candidates(self, mask, key, n, train):
        if not self._some(train):
            return super().candidates(mask, key, n, train)
        # Each slide's own draw, whatever else is in the batch and on the device.
        chance = jax.random.uniform(key, (len(mask), mask[0].size))
        return _first(jnp.where(mask.reshape(chance.shape), chance, 2), mask, n)

    def _some(self, train):
        return train and self.config.joint

    def forward(self, params, mask, tiles):
        """Logits [b c], and the attention [b m] of the kept tiles."""
        which = jnp.zeros(mask.shape, jnp.int32)
        h = self.reader.embed(params["judge"], tiles, which, mask)
        if self.config.pooling is Pooling.max:
            return self._by_max(params["judge"], mask, h)
        said = self.reader.attention_logits(params["judge"], h)
        how = self.config.normaliser, self.config.power
        weights = normalise(said, mask[:, None], *how)
        return self.reader.classify(params["judge"], weights, h), weights[:, 0]

    def _by_max(self, params, mask, h):
        seen = jnp.where(mask[..., None], h, -jnp.inf)
        winner = lax.stop_gradient(seen).argmax(1)
        best = jnp.take_along_axis(seen, winner[:, None], 1)[:, 0]
        best = jnp.where(mask.any(1)[:, None], best, 0)
        logits = self.reader.head.apply(params["head"], best, method="classify")
        share = jax.nn.one_hot(winner, mask.shape[1]).mean(1) * mask
        return logits, share

    def loss(self, params, kept, tiles, label, key):
        tiles = self.config.augmented(key, tiles)
        logits, _ = self.forward(params, kept.mask, tiles)
        loss = cross_entropy(logits, label)
        metrics = {"accuracy": (logits.argmax(-1) == label).astype(jnp.float32)}
        if not self.config.joint:
            return loss, metrics
        k = self.config.learnt
        own, more = self._loss_of_scorer(params, kept.mask[:, :k], tiles[:, :k], label)
        return loss + own, metrics | more | {"bag_loss": loss, "scorer_loss": own}

    def verdict(self, params, candidates, kept, tiles):
        logits, weights = self.forward(params, kept.mask, tiles)
        return Prediction(logits, _spread(weights, candidates, kept), {})

    def flops(self, params, tile):
        there = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
        one = jax.ShapeDtypeStruct((1, *tile.shape), tile.dtype)
        return super().flops(params, tile)[0], count_flops(
            self.forward, params, there, one
        )


def _first(order, mask, n) -> Candidates:
    """The cells that count, the first n in some order [b k] of all cells."""
    flat = mask.reshape(len(mask), -1)
    index = jnp.argsort(order, axis=1, stable=True).astype(jnp.int32)
    index = jnp.pad(index[:, :n], [(0, 0), (0, max(0, n - flat.shape[1]))])
    return Candidates(index, jnp.arange(n)[None] < flat.sum(1, keepdims=True))


def _spread(weights, candidates: Candidates, kept: Kept) -> Any:
    """The attention of kept tiles on all of them [b n]: 0 for those not kept."""
    weights = jnp.where(kept.mask, weights, 0)
    none = jnp.zeros(candidates.mask.shape, weights.dtype)
    return jax.vmap(lambda a, at, w: a.at[at].add(w))(none, kept.place, weights)
