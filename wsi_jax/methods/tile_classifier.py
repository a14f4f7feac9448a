"""A tile encoder trained with its classifier on labelled tiles, end to end."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from wsi_jax.nets.encoder import Encoder, Trunk
from wsi_jax.ops.augment import augment, blur, borrow
from wsi_jax.train.flops import count_flops
from wsi_jax.train.supervised import supervised
from wsi_jax.types import Prediction, Stage, Task


@dataclasses.dataclass(kw_only=True)
class Augment:
    """How much a tile is changed each time it is seen in training.

    Attributes:
        crop: side of the square cut out of a tile, as a share of the tile's.
        stain: spread of the log gain of each stain.
        shade: spread of what is added to the optical density of each stain.
        blur: most sigma of a Gaussian, in pixels.
        borrow: share of the tiles that show their detail on another tile's coarse look.
        borrow_px: side, in pixels, below which structure is detail.
    """

    crop: float = 0.85
    stain: float = 0.1
    shade: float = 0.03
    blur: float = 0.0
    borrow: float = 0.0
    borrow_px: int = 8


@dataclasses.dataclass(kw_only=True)
class TileClassifier:
    """An encoder and one linear layer, on tiles that have a label each.

    Batches are Bags of one tile: `x` is pixels [b s s 3], `mask` is [b 1]. A tile is
    seen turned, cut and restained in training, and as it is in prediction. The layer
    starts at zero, so that no class is preferred.

    Attributes:
        encoder: that is trained, from its weights where it has some.
        augment: of the training tiles.
        smoothing: of the labels (Szegedy et al. 2016, eq. 4 f.), in training.
    """

    encoder: Trunk = dataclasses.field(default_factory=Encoder)
    augment: Augment = dataclasses.field(default_factory=Augment)
    smoothing: float = 0.1

    def validate(self) -> None:
        """Refuses what cannot be trained."""
        if not 0 < self.augment.crop <= 1:
            raise ValueError(
                f"--config.method.augment.crop={self.augment.crop:g}: a crop is a "
                "share of the tile, above 0 and at most 1"
            )

    def stages(self, task: Task, tx: optax.GradientTransformation) -> tuple[Stage]:
        encoder, c = self.encoder.make(), len(task.classes)

        def init(key, batch):
            params = self.encoder.begin(key, batch)
            kernel = jnp.zeros((encoder.dim, c))
            return {"encoder": params, "fc": {"kernel": kernel, "bias": jnp.zeros(c)}}

        def forward(params, pixels):
            fc = params["fc"]
            features = encoder.apply(params["encoder"], pixels)
            return features @ fc["kernel"] + fc["bias"][None]

        def loss(params, batch, key):
            changes, side = self.augment, batch.x.shape[1]
            pixels = augment(
                jax.random.split(key, len(batch.x)),
                batch.x,
                crop_px=round(changes.crop * side),
                stain=changes.stain,
                shade=changes.shade,
            )
            b = (len(pixels),)
            if changes.borrow:
                which = jax.random.bernoulli(
                    jax.random.fold_in(key, 1), changes.borrow, b
                )
                pixels = borrow(pixels, which, changes.borrow_px)
            if changes.blur:
                sigma = jax.random.uniform(jax.random.fold_in(key, 2), b)
                pixels = blur(pixels, changes.blur * sigma)
            logits = forward(params, pixels)
            wanted = optax.smooth_labels(jax.nn.one_hot(batch.label, c), self.smoothing)
            right = (logits.argmax(-1) == batch.label).astype(jnp.float32)
            losses = optax.softmax_cross_entropy(logits, wanted)
            return losses, {"accuracy": right}

        def predict(params, batch, key):
            del key
            one = jax.ShapeDtypeStruct((1, *batch.x.shape[1:]), batch.x.dtype)
            tiles = batch.mask.sum(-1)
            counts = {
                "tiles": tiles,
                "flops": tiles * count_flops(forward, params, one),
            }
            attention = batch.mask.astype(jnp.float32)
            return Prediction(forward(params, batch.x), attention, counts)

        return (Stage("train", supervised(init, loss, predict, tx)),)
