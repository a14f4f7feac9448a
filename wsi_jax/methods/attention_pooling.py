"""End-to-end attention pooling: score all tiles, select the best and worst, pool them.

Liu, Zuo et al., Geomatics and Information Science of Wuhan University 49(7), 2024 (in
Chinese). A net that scores tiles is trained on the highest-scored tiles of each slide
under the slide's label; the tiles it scores highest and lowest then go, as pixels,
through a second net whose attention pooling normalises by a squared average. Of the
article only the abstract could be had, and the claims of the group's patent (US
12,008,076 B2): the formula of the squared average, both heads, the score 1 - p(normal)
where there are more than two classes, the joint mode and every default below are
choices of this package.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from wsi_jax.config_fields import COUNT, FieldError
from wsi_jax.nets.classification_loss import classification_loss
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.nets.crop_options import HeadConfig, TileOptions
from wsi_jax.nets.tile_pooling import PoolingHead, classify_tiles
from wsi_jax.nets.trunk import Trunk
from wsi_jax.ops.crop_grid import CropGrid
from wsi_jax.training.flops import count_flops
from wsi_jax.training.loop import StageConfig
from wsi_jax.training.optimiser import alone, scale_updates
from wsi_jax.training.select_and_read import (
    Flops,
    SelectiveByTile,
    attention_on_candidates,
    best_and_worst,
    first_cells,
    on_device,
)
from wsi_jax.training.select_and_read_from_disk import in_rounds
from wsi_jax.types import Dtype, Prediction, Stage, Task


@dataclasses.dataclass(kw_only=True)
class Scoring(StageConfig):
    """Scoring of tiles, and the training of the net that scores.

    Attributes:
        tiles: number of highest-scored tiles of a slide that the scorer learns from.
        renew: steps of the scorer's training between two scorings of all tiles, which
            is an epoch where it is slides / batch.
        candidates: number of tiles, drawn at random, that a step of joint training
            scores.
        chunk: tiles scored at a time.
        dtype: dtype of scoring; None for the scorer's own.
    """

    tiles: int = 8
    renew: int = 50
    candidates: int = 256
    chunk: int = 256
    dtype: Dtype | None = None

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **StageConfig.bounds,
        **dict.fromkeys(("tiles", "renew", "candidates", "chunk"), COUNT),
    }


@dataclasses.dataclass(kw_only=True)
class AttentionPooling(TileOptions):
    """Two nets: one scores all tiles, one classifies the slide by some of them.

    The score of a tile is the log-odds of its not being of the first class.

    Attributes:
        scorer: trunk of the net that scores; trained from its weights if it has some.
            `trunk` is that of the net that classifies; other options hold for both.
        best: number of highest-scored tiles by which a slide is classified.
        worst: number of lowest-scored ones; 0 for the best alone.
        scoring: scoring of tiles, and the scorer's training.
        joint: train both nets at once, in one stage: tiles are scored anew in each
            step.
    """

    scorer: Trunk = dataclasses.field(default_factory=Encoder)
    best: int = 64
    worst: int = 64
    scoring: Scoring = dataclasses.field(default_factory=Scoring)
    joint: bool = False
    head: PoolingHead = dataclasses.field(default_factory=PoolingHead)
    chunk: int | None = 32

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {
        **TileOptions.bounds,
        "best": COUNT,
    }

    def validate(self) -> None:
        """Refuses a scorer that would learn from tiles that are not read."""
        if self.joint and self.scoring.tiles > self.best:
            raise FieldError(
                "scoring.tiles",
                "in joint training the scorer learns from the tiles by which slides "
                f"are classified, --config.method.best={self.best}",
            )

    def description(self, mpp: float) -> str:
        """What is read and learnt, in a sentence or two."""
        del mpp
        worst = f" and {self.worst} lowest" if self.worst else ""
        order = "jointly" if self.joint else "one after the other"
        return (
            f"Every tile of {self.tile_px} px at {self.mpp:g} um/px is scored; the "
            f"prediction rests on the {self.best} highest{worst}. Scorer and "
            f"classifier are trained {order}, end to end on slide labels."
        )

    def trained(self) -> "AttentionPooling":
        """The method as its checkpoint needs it: without files of weights."""
        scorer = dataclasses.replace(self.scorer, weights="")
        return dataclasses.replace(super().trained(), scorer=scorer)

    def stages(
        self,
        task: Task,
        tx: optax.GradientTransformation,
        mpp: float,
        cell_px: int,
    ) -> tuple[Stage, ...]:
        """The scorer's and the classifier's, or one for both.

        Args:
            task: what is learnt; of its classes the first is normal.
            tx: the optimiser of the last stage; the scorer's own is in `scoring`.
        """
        cells = self.cells(mpp, cell_px)
        form = on_device if self.resident else in_rounds
        scaled = lambda tx: scale_updates("trunk", self.trunk_rate, tx)
        own = tx if self.joint else alone("judge", tx)
        classifier = form(Classifier(self, task, cells), scaled(own))
        if self.joint:
            return (Stage("joint", classifier),)
        own = self.scoring.optimiser.make(self.scoring.steps)
        scorer = form(Scorer(self, task, cells), scaled(own))
        return (
            Stage("scorer", scorer, overrides=self.scoring.overrides()),
            Stage("classifier", classifier),
        )


class Scorer(SelectiveByTile):
    """Scores tiles, and learns from the best of them under the slide's label.

    The `extra` of its selections is the place [b m] of each tile among the candidates.
    """

    def __init__(self, config: AttentionPooling, task: Task, cells: CropGrid):
        self.config, self.cells, self.classes = config, cells, len(task.classes)
        self.renew, self.chunk = config.scoring.renew, config.scoring.chunk
        self.best, self.worst = config.scoring.tiles, 0
        head = HeadConfig(width=config.head.width, deviation=config.head.deviation)
        net = lambda trunk: config.classifier(self.classes, trunk=trunk, head=head)
        self.tile_net = self.scoring_net = net(config.scorer)
        if dtype := config.scoring.dtype:
            self.scoring_net = net(dataclasses.replace(config.scorer, dtype=dtype))

    def init(self, key):
        return {"scorer": self.tile_net.init(key)}

    def first(self, params, batch, key, n):
        """Tiles selected by chance, each cell by a number of its own: however many
        candidates there may be, the same are selected."""
        candidates = self.begin(None, batch, key, n, train=False)
        chance = jax.random.uniform(key, (len(batch.mask), batch.mask[0].size))
        scores = jnp.take_along_axis(chance, candidates.index, 1)
        return self.select(candidates, scores)

    def init_on_crops(self, key, params, crops, magnification, mask):
        first = crops, magnification, mask
        adapted = self.tile_net.init_on_crops(key, params["scorer"], *first)
        return params | {"scorer": adapted}

    def view(self, params):
        return params["scorer"]

    def score(self, view, tiles):
        """Log-odds [n] of tiles [n s s 3] not being normal, rising with 1 - p."""
        logits = self.scoring_net.classify_each(view, tiles[None])[0]
        return jax.nn.logsumexp(logits[:, 1:], -1) - logits[:, 0]

    def select(self, candidates, scores):
        return best_and_worst(candidates, scores, self.best, self.worst)

    def loss(self, params, batch, selection, crops, keys):
        tiles = self.config.augmented(keys, crops)
        return self._tile_loss(params, selection.mask, tiles, batch.target)

    def _tile_loss(self, params, mask, tiles, label):
        """Mean loss [b] of tiles under the slide's label, and their accuracy."""
        logits = self.tile_net.classify_each(params["scorer"], tiles)
        labels = jnp.broadcast_to(label[:, None], mask.shape)
        count = jnp.maximum(mask.sum(1), 1)
        mean = lambda values: jnp.where(mask, values, 0).sum(1) / count
        loss, metrics = classification_loss(logits, labels)
        return mean(loss), {"tile_accuracy": mean(metrics["accuracy"])}

    def prediction(self, params, batch, selection, crops):
        """By the mean logits of the tiles from which the scorer would learn."""
        del batch
        logits, mask = (
            self.tile_net.classify_each(params["scorer"], crops),
            selection.mask,
        )
        weights = mask / jnp.maximum(mask.sum(1, keepdims=True), 1)
        logits = jnp.einsum("bm,bmc->bc", weights, logits)
        return Prediction(logits, attention_on_candidates(weights, selection), {})

    def flops(self, params, batch, crop):
        del batch
        one = count_flops(self.tile_net.classify_each, params["scorer"], crop)
        return Flops(score=one, read=one)


class Classifier(Scorer):
    """Classifies slides by the best and the worst of their tiles."""

    def __init__(self, config: AttentionPooling, task: Task, cells: CropGrid):
        super().__init__(config, task, cells)
        self.best, self.worst, self.renew = config.best, config.worst, 1
        self.slide_net = config.classifier(self.classes)

    def init(self, key):
        keys = jax.random.split(key)
        return super().init(keys[0]) | {"judge": self.slide_net.init(keys[1])}

    def init_on_crops(self, key, params, crops, magnification, mask):
        keys, first = jax.random.split(key), (crops, magnification, mask)
        params = super().init_on_crops(keys[0], params, *first)
        adapted = self.slide_net.init_on_crops(keys[1], params["judge"], *first)
        return params | {"judge": adapted}

    def most_cells(self, mask, train):
        n = super().most_cells(mask, train)
        return min(n, self.config.scoring.candidates) if self._draws(train) else n

    def begin(self, view, batch, key, n, train):
        """Every tile is a candidate; in joint training a few, drawn by chance."""
        if not self._draws(train):
            return super().begin(view, batch, key, n, train)
        # Each slide's own draw, whatever else is in the batch and on the device.
        shape, key = (len(batch.mask), batch.mask[0].size), jax.random.fold_in(key, 0)
        chance = jax.random.uniform(key, shape)
        order = jnp.where(batch.mask.reshape(shape), chance, 2)
        return first_cells(order, batch.mask, n)

    def _draws(self, train):
        return train and self.config.joint

    def forward(self, params, mask, tiles):
        """Logits [b c], and the attention [b m] on the selected tiles."""
        net, head, params = self.slide_net, self.config.head, params["judge"]
        options = head.normaliser, head.power, head.pooling
        return classify_tiles(net, params, tiles, mask, *options)

    def loss(self, params, batch, selection, crops, keys):
        tiles = self.config.augmented(keys, crops)
        label, mask = batch.target, selection.mask
        logits, _ = self.forward(params, mask, tiles)
        loss, metrics = classification_loss(logits, label)
        if not self.config.joint:
            return loss, metrics
        k = self.config.scoring.tiles
        scorer_loss, more = self._tile_loss(params, mask[:, :k], tiles[:, :k], label)
        parts = {"bag_loss": loss, "scorer_loss": scorer_loss}
        return loss + scorer_loss, metrics | more | parts

    def prediction(self, params, batch, selection, crops):
        del batch
        logits, weights = self.forward(params, selection.mask, crops)
        return Prediction(logits, attention_on_candidates(weights, selection), {})

    def flops(self, params, batch, crop):
        mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
        read = count_flops(self.forward, params, mask, crop)
        return super().flops(params, batch, crop)._replace(read=read)
