"""`streaming_training_from_disk` for images that fit on the device: one program.

Both give the same results, but for what dropout draws.
"""

import jax.numpy as jnp
import optax
from jax import lax

from wsi_jax.ops.augment import rotate_flip
from wsi_jax.ops.slide_keys import halves
from wsi_jax.ops.streaming import stream
from wsi_jax.training.flops import count_flops
from wsi_jax.training.streamable import Streamable
from wsi_jax.training.supervised import supervised
from wsi_jax.types import Method, Prediction


def image_method(
    net: Streamable, tile_px: tuple[int, int], tx: optax.GradientTransformation
) -> Method:
    """The Method of a streamable net on images [b h w 3] and masks of their cells."""

    def bag_of(params, image, tissue):
        """The bag [n d] of one image; params: of the trunk's input."""
        plan = net.plan(params, dtype=image.dtype)
        required = net.required(plan, tissue, image.shape[:2])
        cells = stream(net.feature_map, params, image[None], tile_px, *required)
        cells = net.pool_map(cells)[0]
        return cells.reshape(-1, cells.shape[-1])

    def augmented(params, image, tissue, key):
        which, shift = net.draw_augmentation(key)
        rotated = lambda a: rotate_flip(a[None], which[None])[0]
        if net.turns:
            image, tissue = rotated(image), rotated(tissue[..., None])[..., 0]
        params = net.trunk_input(params, shift if net.shifts_colours else None)
        return bag_of(params, image, tissue), tissue

    def bags(params, batch, keys=None):
        if keys is None:
            params = net.trunk_input(params)
            one = lambda xs: (bag_of(params, *xs), xs[1])
            x, mask = lax.map(one, (batch.x, batch.mask))
        else:
            one = lambda xs: augmented(params, *xs)
            x, mask = lax.map(one, (batch.x, batch.mask, keys))
        return x, mask.reshape(len(mask), -1)

    def loss(params, batch, keys):
        augment_keys, head_keys = halves(keys)
        x, mask = bags(params, batch, augment_keys)
        return net.loss(params["head"], x, mask, batch.target, head_keys)

    def predict(params, batch, key):
        del key
        x, mask = bags(params, batch)
        logits, attention = net.predict(params["head"], x, mask)
        work = count_flops(lambda p, b: bags(p, b)[0], params, batch)
        flops = jnp.full(len(mask), work / len(mask), jnp.float32)
        counts = {"tiles": mask.sum(-1), "flops": flops}
        return Prediction(logits, attention, counts)

    return supervised(lambda key, batch: net.init(key), loss, predict, tx)
