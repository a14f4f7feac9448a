"""Patch-all, end to end: every tile of a slide read, encoded, pooled and trained on.

What `methods.attention_sampling` is held against: the same trunk, reader and head, with
gated attention on what every tile shows (Ilse et al. 2018) in place of a choice.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from wsi_jax.config_fields import FieldError
from wsi_jax.nets.classification_loss import classification_loss
from wsi_jax.nets.crop_options import HeadConfig, TileOptions
from wsi_jax.nets.tile_pooling import classify_tiles
from wsi_jax.ops.attention_weights import Normaliser
from wsi_jax.ops.crop_grid import CropGrid
from wsi_jax.training.flops import count_flops
from wsi_jax.training.optimiser import scale_updates
from wsi_jax.training.select_and_read import Flops, SelectiveByTile, on_device
from wsi_jax.training.select_and_read_from_disk import in_rounds
from wsi_jax.types import Prediction, Stage, Task


def _head() -> HeadConfig:
    return HeadConfig(attention_width=32)


@dataclasses.dataclass(kw_only=True)
class PatchAll(TileOptions):
    """A trunk and ABMIL trained on all tiles of whole slides.

    Attributes:
        normaliser: normaliser of the attention.
        lookahead: whether the next batch is read while one is learnt from.
    """

    head: HeadConfig = dataclasses.field(default_factory=_head)
    normaliser: Normaliser = Normaliser.softmax
    lookahead: bool = True

    def validate(self) -> None:
        """Refuses a head without attention."""
        if not self.head.attention_width:
            raise FieldError("head.attention_width", "1 or more")

    def description(self, mpp: float) -> str:
        """What is read and learnt, in a sentence."""
        del mpp
        return (
            f"Every tile of {self.tile_px} px at {self.mpp:g} um/px, trained end to "
            "end on slide labels."
        )

    def stages(
        self,
        task: Task,
        tx: optax.GradientTransformation,
        mpp: float,
        cell_px: int,
    ) -> tuple[Stage, ...]:
        """One stage; as `AttentionSampling.stages`."""
        net = _Net(self, task, self.cells(mpp, cell_px))
        tx = scale_updates("trunk", self.trunk_rate, tx)
        method = on_device(net, tx) if self.resident else in_rounds(net, tx)
        return (Stage("train", method),)


class _Net(SelectiveByTile):
    """Trunk and head on all tiles."""

    def __init__(self, config: PatchAll, task: Task, cells: CropGrid):
        self.config, self.cells = config, cells
        self.lookahead = int(config.lookahead)
        self.classifier = config.classifier(len(task.classes))
        self.init, self.init_on_crops = (
            self.classifier.init,
            self.classifier.init_on_crops,
        )

    def view(self, params):
        del params
        return {}

    def forward(self, params, mask, crops):
        """Logits [b c] and attention [b n]."""
        rule = self.config.normaliser
        return classify_tiles(self.classifier, params, crops, mask, rule)

    def loss(self, params, batch, selection, crops, keys):
        crops, label = self.config.augmented(keys, crops), batch.target
        logits, _ = self.forward(params, selection.mask, crops)
        return classification_loss(logits, label)

    def prediction(self, params, batch, selection, crops):
        del batch
        return Prediction(*self.forward(params, selection.mask, crops), {})

    def flops(self, params, batch, crop):
        del batch
        mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
        return Flops(read=count_flops(self.forward, params, mask, crop))
