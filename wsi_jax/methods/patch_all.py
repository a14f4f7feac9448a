"""Patch-all, end to end: every tile of a slide read, encoded, pooled and trained on.

What `methods.attention_sampling` is held against: the same trunk, reader and head, with
gated attention on what every tile shows (Ilse et al. 2018) in place of a choice.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax

from wsi_jax.nets.crop_classifier import CropOptions
from wsi_jax.ops.attention_weights import Normaliser, normalise
from wsi_jax.ops.crop_grid import CropGrid
from wsi_jax.training.crop_selection import Chosen, looking
from wsi_jax.training.flops import count_flops
from wsi_jax.training.optimiser import scale_learning_rate
from wsi_jax.training.resident import resident
from wsi_jax.types import Prediction, Stage, Takes, Task, padded


@dataclasses.dataclass(kw_only=True)
class PatchAll(CropOptions):
    """A trunk and ABMIL trained on all tiles of whole slides.

    Tiles are the cells of the run's grid, read at `mpp`; a grid of tiles that abut has
    `grid.mpp * grid.size_px == mpp * tile_px`.

    Attributes:
        mpp: um/px of the tiles.
        tile_px: side of a tile.
        centred: a tile is told from the mean of the slide's tiles.
        attention: hidden width of the attention.
        branches: attentions; the verdict sees what each of them pools.
        normaliser: of the attention.
        ahead: read the next batch while one is learnt from.
    """

    mpp: float = 0.5
    tile_px: int = 224
    centred: bool = False
    attention: int = 32
    branches: int = 1
    normaliser: Normaliser = Normaliser.softmax
    ahead: bool = True

    takes: ClassVar[Takes] = Takes.crops
    overviews: ClassVar[bool] = False
    all_tiles: ClassVar[bool] = True

    def validate(self) -> None:
        """Raises ValueError naming the flag that is wrong."""
        self.check_counts("tile_px", "attention", "branches")

    def reads(self) -> tuple[float, ...]:
        """um/px at which slides are read besides the overview."""
        return (self.mpp,)

    def said(self, mpp: float) -> str:
        """What is read and learnt, in a sentence; as `AttentionSampling.said`."""
        del mpp
        return (
            f"Every tile of {self.tile_px} px at {self.mpp:g} um/px, trained end to "
            "end on slide labels."
        )

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
        """One stage; as `AttentionSampling.stages`."""
        net = _Net(self, task, self.cells(mpp, cell_px))
        tx = scale_learning_rate("trunk", self.trunk_rate, tx)
        method = resident(net, tx) if self.resident else looking(net, tx)
        return (Stage("train", method),)


class _Net:
    """Trunk and head as pure functions of tiles."""

    carries = False

    def __init__(self, config: PatchAll, task: Task, cells: CropGrid):
        self.config, self.cells, self.ahead = config, cells, config.ahead
        self.reader = config.classifier(
            len(task.classes), attention_width=config.attention,
            branches=config.branches, centred=config.centred,
        )  # fmt: skip
        self.init, self.begin = self.reader.init, self.reader.init_on_crops

    def count(self, mask):
        return padded(int(mask.sum((1, 2)).max()), 16)

    def most(self, shape):
        return sum(self.cells.cell_counts(shape))

    def draw(self, params, overview, mask, key, n):
        """Every cell that counts, row by row."""
        del params, overview, key
        flat = mask.reshape(len(mask), -1)
        index = jnp.argsort(~flat, stable=True).astype(jnp.int32)
        index = jnp.pad(index[:, :n], [(0, 0), (0, max(0, n - flat.shape[1]))])
        there = jnp.arange(n)[None] < flat.sum(1, keepdims=True)
        return Chosen(index, there.astype(jnp.float32), there, None)

    choose = draw

    def places(self, index, shape):
        return self.cells.crop_corners(index, shape)

    def forward(self, params, mask, crops):
        """Logits [b c] and attention [b n], the mean of all."""
        which = jnp.zeros(mask.shape, jnp.int32)
        h = self.reader.embed(params, crops, which, mask)
        said = self.reader.attention_logits(params, h)
        attention = normalise(said, mask[:, None], self.config.normaliser)
        return self.reader.classify(params, attention, h), attention.mean(1)

    def loss(self, params, overview, mask, drawn, crops, label, key):
        del overview, mask
        crops = self.config.augmented(key, crops)
        logits, _ = self.forward(params, drawn.mask, crops)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return loss, {"accuracy": (logits.argmax(-1) == label).astype(jnp.float32)}

    def verdict(self, params, mask, chosen, crops):
        del mask
        return Prediction(*self.forward(params, chosen.mask, crops), {})

    def flops(self, params, overview, mask, crop):
        del overview, mask
        there = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
        return 0, count_flops(self.forward, params, there, crop)
