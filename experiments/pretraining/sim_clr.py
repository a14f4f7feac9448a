"""A tile encoder trained without labels: two views of a tile are to be alike."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float

from experiments.pretraining.augment import Augment, downsample
from experiments.pretraining.tile_classifier import of_tiles
from wsi_jax.nets.conv_encoder import Encoder
from wsi_jax.nets.trunk import Trunk
from wsi_jax.training.supervised import supervised
from wsi_jax.types import Stage, Task


@dataclasses.dataclass(kw_only=True)
class SimCLR:
    """SimCLR (Chen et al. 2020) on tiles, without labels.

    Batches are Bags of one tile: `x` is pixels [b s s 3], `mask` is [b 1]. Features of
    two views of each tile go through two linear layers with a ReLU between, and are
    compared with those of the whole batch (`nt_xent`). The logits of a prediction are
    the tile's features [b d], for a linear probe; validation is by the same loss.

    Attributes:
        encoder: the encoder to train, from its weights where it has some.
        augment: what makes two views of a tile differ. What it leaves alone, such as
            colour, is enough to match views by, and all that is learnt.
        scales: multiples of the tiles' um/px at which they are seen; tiles are compared
            at each alone. A view lies anywhere in the tile, and its side is the tile's
            over the greatest multiple.
        deviation: whether the deviation of the encoder's map is compared, too.
        projection: width of the projection in which views are compared.
        temperature: divisor of the cosines.
    """

    encoder: Trunk = dataclasses.field(default_factory=Encoder)
    augment: Augment = dataclasses.field(
        default_factory=lambda: Augment(crop=0.6, stain=0.5, shade=0.1, blur=1.0)
    )
    scales: tuple[int, ...] = (1,)
    deviation: bool = False
    projection: int = 128
    temperature: float = 0.1

    def validate(self) -> None:
        """Refuses what cannot be trained."""
        if self.projection < 1 or self.temperature <= 0:
            raise ValueError(
                f"--config.method.projection={self.projection} is 1 or more, "
                f"--config.method.temperature={self.temperature:g} above 0"
            )
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"--config.method.scales={self.scales}: 1 or more each")

    def stages(self, task: Task, tx: optax.GradientTransformation) -> tuple[Stage, ...]:
        """One, for any task."""
        del task
        encoder, draw = self.encoder.make(), jax.nn.initializers.he_normal()
        pooled = self.encoder.pooled(self.deviation)

        def init(key, batch):
            mine, inner, outer = jax.random.split(key, 3)
            params = self.encoder.init_calibrated(mine, batch)
            inner = draw(inner, (pooled.dim, pooled.dim))
            outer = draw(outer, (pooled.dim, self.projection))
            projector = {
                "inner": {"kernel": inner, "bias": jnp.zeros(pooled.dim)},
                "outer": {"kernel": outer},
            }
            return {"encoder": params, "projector": projector}

        def project(params, features):
            inner, outer = params["inner"], params["outer"]
            hidden = jax.nn.relu(features @ inner["kernel"] + inner["bias"][None])
            return hidden @ outer["kernel"]

        def compare(params, batch, key, times):
            where, *keys = jax.random.split(key, 3)
            b, x = len(batch.x), self.part(where, batch.x, times)
            # Side by side, so that both views of a tile lie on its device.
            views = jnp.stack([self.view(k, x) for k in keys], 1)
            views = views.reshape(2 * b, *views.shape[2:])
            features = pooled.apply(params["encoder"], views)
            z = project(params["projector"], features).reshape(b, 2, -1)
            return nt_xent(z, batch.mask[:, 0], self.temperature)

        def loss(params, batch, key):
            keys = jax.random.split(key, len(self.scales))
            each = [
                compare(params, batch, k, times)
                for k, times in zip(keys, self.scales, strict=True)
            ]
            losses, right = (sum(one) / len(each) for one in zip(*each, strict=True))
            return losses, {"recognised": right}

        def validate(params, batch, key):
            losses, metrics = loss(params, batch, key)
            return {"loss": losses} | metrics

        def predict(params, batch, key):
            del key
            return of_tiles(encoder.apply, params["encoder"], batch)

        # Neither may labels weigh or order the tiles.
        plan = {"monitor": "-loss", "class_weights": False, "balanced": False}
        method = supervised(init, loss, predict, tx, whole=True)
        return (Stage("train", method, overrides=plan, validate=validate),)

    def part(self, key, pixels, times):
        """Of each of the tiles [b s s 3] a part, at so many times as many um/px."""
        shown, side = downsample(pixels, times), pixels.shape[1] // max(self.scales)
        spare = shown.shape[1] - side
        corners = jax.random.randint(key, (len(shown), 2), 0, spare + 1)
        cut = lambda tile, at: lax.dynamic_slice(tile, (*at, 0), (side, side, 3))
        return jax.vmap(cut)(shown, corners)

    def view(self, key, pixels):
        """One view of each of the tiles [b s s 3], or of parts of them."""
        crop_px = self.augment.crop_px(pixels.shape[1], self.encoder.multiple_px)
        detail_px = self.augment.borrow_px
        return self.augment.show(key, pixels, crop_px=crop_px, detail_px=detail_px)[0]

    def check_tiles(self, side: int) -> None:
        """Refuses tiles of which the encoder would see nothing.

        Raises:
            ValueError: naming the flag.
        """
        part_px = side // max(self.scales)
        crop_px = self.augment.crop_px(part_px, self.encoder.multiple_px)
        net = self.encoder.trunk()
        view = jax.ShapeDtypeStruct((1, crop_px, crop_px, 3), jnp.float32)
        if crop_px <= part_px:
            see = lambda x: net.init_with_output(jax.random.key(0), x)[0]
            if jax.eval_shape(see, view).size:
                return
        raise ValueError(
            f"--config.method.scales={self.scales}: of tiles of {side} px {part_px} px "
            f"are seen, in views of {crop_px} px, too few for the encoder; give larger "
            "tiles, or smaller scales"
        )


def nt_xent(
    views: Float[Array, "b 2 d"], mask: Bool[Array, " b"], temperature: float
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Normalised, temperature-scaled cross entropy (Chen et al. 2020, eq. 1).

    Each view is to match its tile's other view among those of all tiles of the batch,
    on however many devices, by their cosine. What `mask` leaves out is no negative.

    Returns:
        The loss of each tile, the mean of its two views', and the share of them whose
        nearest view is the other one; 0 where there is no tile.
    """
    b, _, d = views.shape
    views = views.astype(jnp.promote_types(views.dtype, jnp.float32))
    views = jnp.where(mask[:, None, None], views, 0)
    # The floor keeps a view of no length, and the gradient there, a number.
    scale = jax.lax.rsqrt(jnp.maximum((views**2).sum(-1, keepdims=True), 1e-12))
    rows = (views * scale).reshape(2 * b, d)
    place = jnp.arange(2 * b)
    other = place ^ 1
    mine = place[None] == other[:, None]
    rest = jnp.repeat(mask, 2)[None] & (place[None] // 2 != place[:, None] // 2)
    logits = rows @ rows.T / temperature
    logits = jnp.where(mine | rest, logits, -jnp.inf)
    right = jnp.where(mine, logits, 0).sum(-1)
    losses = jax.nn.logsumexp(logits, -1) - right
    recognised = (logits.argmax(-1) == other).astype(losses.dtype)
    of_tiles = lambda each: jnp.where(mask, each.reshape(b, 2).mean(-1), 0)
    return of_tiles(losses), of_tiles(recognised)
