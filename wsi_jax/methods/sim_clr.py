"""A tile encoder trained without labels: two views of a tile are to be alike."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from wsi_jax.nets.encoder import Encoder
from wsi_jax.nets.trunk import Trunk
from wsi_jax.ops.contrastive import nt_xent
from wsi_jax.train.augment import Augment
from wsi_jax.train.flops import count_flops
from wsi_jax.train.supervised import supervised
from wsi_jax.types import Prediction, Stage, Task


@dataclasses.dataclass(kw_only=True)
class SimCLR:
    """SimCLR (Chen et al. 2020) on tiles whose labels nobody reads.

    Batches are Bags of one tile: `x` is pixels [b s s 3], `mask` is [b 1]. Each tile is
    seen in two views; what the encoder makes of them goes through two linear layers
    with a ReLU between, and there each view is to know the other among those of the
    whole batch (`ops.contrastive.nt_xent`): larger batches ask more.

    It tells no classes: the logits of a prediction are the tile's features [b d], for a
    linear probe, and validation is by the same loss.

    Attributes:
        encoder: that is trained, from its weights where it has some.
        augment: what makes two views of a tile differ. What it leaves alone, colour
            first of all, is enough to know a view by, and all that will be learnt.
        projection: numbers that views are compared by.
        temperature: of the comparison; lower, the likest other tiles count most.
    """

    encoder: Trunk = dataclasses.field(default_factory=Encoder)
    augment: Augment = dataclasses.field(
        default_factory=lambda: Augment(crop=0.6, stain=0.5, shade=0.1, blur=1.0)
    )
    projection: int = 128
    temperature: float = 0.1

    def validate(self) -> None:
        """Refuses what cannot be trained."""
        if self.projection < 1 or self.temperature <= 0:
            raise ValueError(
                f"--config.method.projection={self.projection} is 1 or more, "
                f"--config.method.temperature={self.temperature:g} above 0"
            )

    def stages(self, task: Task, tx: optax.GradientTransformation) -> tuple[Stage]:
        """One, for any task."""
        del task
        encoder, draw = self.encoder.make(), jax.nn.initializers.he_normal()

        def init(key, batch):
            mine, inner, outer = jax.random.split(key, 3)
            params = self.encoder.begin(mine, batch)
            inner = draw(inner, (encoder.dim, encoder.dim))
            outer = draw(outer, (encoder.dim, self.projection))
            projector = {
                "inner": {"kernel": inner, "bias": jnp.zeros(encoder.dim)},
                "outer": {"kernel": outer},
            }
            return {"encoder": params, "projector": projector}

        def project(params, features):
            inner, outer = params["inner"], params["outer"]
            hidden = jax.nn.relu(features @ inner["kernel"] + inner["bias"][None])
            return hidden @ outer["kernel"]

        def loss(params, batch, key):
            b, keys = len(batch.x), jax.random.split(key)
            # Side by side, so that both views of a tile lie on its device.
            views = jnp.stack([self.seen(k, batch.x) for k in keys], 1)
            features = encoder.apply(
                params["encoder"], views.reshape(2 * b, *views.shape[2:])
            )
            z = project(params["projector"], features).reshape(b, 2, -1)
            losses, found = nt_xent(z, batch.mask[:, 0], self.temperature)
            return losses, {"found": found}

        def validate(params, batch, key):
            losses, metrics = loss(params, batch, key)
            return {"loss": losses} | metrics

        def predict(params, batch, key):
            del key
            one = jax.ShapeDtypeStruct((1, *batch.x.shape[1:]), batch.x.dtype)
            tiles = batch.mask.sum(-1)
            flops = count_flops(encoder.apply, params["encoder"], one)
            features = encoder.apply(params["encoder"], batch.x)
            counts = {"tiles": tiles, "flops": tiles * flops}
            return Prediction(features, batch.mask.astype(jnp.float32), counts)

        # Neither may labels weigh or order the tiles.
        plan = {"monitor": "-loss", "class_weights": False, "balanced": False}
        method = supervised(init, loss, predict, tx)
        return (Stage("train", method, plan=plan, validate=validate),)

    def seen(self, key, pixels):
        """One view of each of the tiles [b s s 3]."""
        changes = self.augment
        crop_px = changes.crop_px(pixels.shape[1], self.encoder.multiple_px)
        detail_px = changes.borrow_px
        return changes.show(key, pixels, crop_px=crop_px, detail_px=detail_px)[0]
