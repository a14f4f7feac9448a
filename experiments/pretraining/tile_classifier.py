"""A tile encoder trained with its classifier on labelled tiles, end to end."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.pretraining.augment import Augment, downsample
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.nets.trunk import Trunk
from wsi_jax.training.flops import count_flops
from wsi_jax.training.supervised import supervised
from wsi_jax.types import Bag, Prediction, Stage, Task


@dataclasses.dataclass(kw_only=True)
class TileClassifier:
    """An encoder and one linear layer, on tiles that have a label each.

    Batches are Bags of one tile: `x` is pixels [b s s 3], `mask` is [b 1]. The layer
    starts at zero, so that no class is preferred.

    Attributes:
        encoder: the encoder to train, from its weights where it has some.
        augment: augmentation of the training tiles.
        smoothing: label smoothing in training (Szegedy et al. 2016, eq. 4 f.).
        coarser: multiple of the tiles' um/px at which a field as many times wider is
            learnt, too, by a linear layer of its own that tells the class of the coarse
            look, borrowed or not; 1 for none.
    """

    encoder: Trunk = dataclasses.field(default_factory=Encoder)
    augment: Augment = dataclasses.field(default_factory=Augment)
    smoothing: float = 0.1
    coarser: int = 1

    def validate(self) -> None:
        """Refuses what cannot be trained."""
        if self.coarser < 1:
            raise ValueError(f"--config.method.coarser={self.coarser}: 1 or more")

    def stages(self, task: Task, tx: optax.GradientTransformation) -> tuple[Stage, ...]:
        encoder, c = self.encoder.make(), len(task.classes)

        def init(key, batch):
            params = self.encoder.init_calibrated(key, batch)
            heads = ("fc", "fc_coarse") if self.coarser > 1 else ("fc",)
            zeros = lambda: {
                "kernel": jnp.zeros((encoder.dim, c)),
                "bias": jnp.zeros(c),
            }
            return {"encoder": params} | {head: zeros() for head in heads}

        def forward(params, pixels, head="fc"):
            fc = params[head]
            features = encoder.apply(params["encoder"], pixels)
            return features @ fc["kernel"] + fc["bias"][None]

        def surprise(logits, label):
            wanted = optax.smooth_labels(jax.nn.one_hot(label, c), self.smoothing)
            right = (logits.argmax(-1) == label).astype(jnp.float32)
            return optax.softmax_cross_entropy(logits, wanted), right

        def loss(params, batch, key):
            fine, _ = self.augmented(key, batch.x)
            losses, right = surprise(forward(params, fine), batch.target)
            metrics = {"accuracy": right}
            if self.coarser > 1:
                coarse, which = self.augmented(
                    jax.random.fold_in(key, 3), batch.x, True
                )
                # Of the tile that lends, see `augment.swap_coarse_structure`.
                label = jnp.where(which, jnp.roll(batch.target, -1), batch.target)
                more, right = surprise(forward(params, coarse, "fc_coarse"), label)
                losses, metrics["coarse_accuracy"] = losses + more, right
            return losses, metrics

        predict = lambda params, batch, key: of_tiles(forward, params, batch)
        return (Stage("train", supervised(init, loss, predict, tx, whole=True)),)

    def augmented(self, key, pixels, coarse: bool = False):
        """Tiles [b s s 3] as training shows them, and which borrow [b].

        Raises:
            ValueError: a field is wider than the tiles.
        """
        changes, side = self.augment, pixels.shape[1]
        crop_px = changes.crop_px(side, self.encoder.multiple_px)
        detail_px = changes.borrow_px
        if coarse:
            pixels = downsample(pixels, self.coarser)
            detail_px = max(1, detail_px // self.coarser)
            if crop_px > pixels.shape[1]:
                raise ValueError(
                    f"--config.method.coarser={self.coarser}: a field of "
                    f"{self.coarser} x {crop_px} px is wider than a tile of {side} px; "
                    f"take less, or less of --config.method.augment.crop="
                    f"{changes.crop:g}"
                )
        return changes.show(key, pixels, crop_px=crop_px, detail_px=detail_px)


def of_tiles(logits: Callable, params: Any, batch: Bag) -> Prediction:
    """The prediction of bags of one tile each, by `logits(params, pixels)` [b d]."""
    one = jax.ShapeDtypeStruct((1, *batch.x.shape[1:]), batch.x.dtype)
    tiles = batch.mask.sum(-1)
    counts = {"tiles": tiles, "flops": tiles * count_flops(logits, params, one)}
    return Prediction(logits(params, batch.x), batch.mask.astype(jnp.float32), counts)
