"""Memory of end-to-end attention pooling's training step, by the tiles of a slide.

    python -m benchmarks.attention_pooling_memory \
        --out benchmarks/results/attention_pooling_memory.json

Nothing runs: bytes are what XLA sets aside for temporaries of the compiled gradient of
one slide's loss, a ResNet-50 on tiles of 224 px. `expected_bytes` is one microbatch's,
without a loop around it, and the gradients and the pooled rows besides.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks import record
from wsi_jax.methods.attention_pooling import AttentionPooling, Classifier
from wsi_jax.nets.conv_encoder import Depth, Encoder
from wsi_jax.nets.norm import NormKind
from wsi_jax.training.flops import compiled_temp_bytes
from wsi_jax.training.select_and_read import Selection
from wsi_jax.types import Bag, Task

SIDE, CHUNK, TILES = 224, 16, (32, 128, 256)
CONFIG = AttentionPooling(
    trunk=Encoder(depth=Depth.resnet50, norm=NormKind.frozen),
    tile_px=SIDE,
    chunk=CHUNK,
)


def gradient(config: AttentionPooling, tiles: int) -> tuple[int, int]:
    """Bytes of the temporaries of a gradient, and of the gradient itself."""
    net = Classifier(config, Task(("normal", "tumor")), config.cells(8.0, 14))
    params = jax.eval_shape(net.init, jax.random.key(0))["judge"]
    shape = lambda *s, dtype: jax.ShapeDtypeStruct(s, dtype)
    selection = Selection(None, shape(1, tiles, dtype=jnp.bool_))
    pixels = shape(1, tiles, SIDE, SIDE, 3, dtype=jnp.uint8)
    bag = Bag(None, None, shape(1, dtype=jnp.int32), None)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def loss(params, bag, selection, pixels, key):
        return net.loss({"judge": params}, bag, selection, pixels, key)[0].sum()

    step = jax.jit(jax.grad(loss))
    of = jax.tree.leaves(params)
    return (
        compiled_temp_bytes(step, params, bag, selection, pixels, key),
        sum(leaf.size * leaf.dtype.itemsize for leaf in of),
    )


def rows(args: record.Arguments) -> Iterator[dict]:
    """Slides learnt from by so many tiles, beside one microbatch of them."""
    microbatch, _ = gradient(dataclasses.replace(CONFIG, chunk=None), CHUNK)
    for tiles in TILES[:1] if args.quick else TILES:
        temporary, gradients = gradient(CONFIG, tiles)
        pooled = 4 * tiles * (2048 + CONFIG.head.width)
        expected = microbatch + gradients + pooled
        yield {
            "tiles": tiles,
            "chunk": CHUNK,
            "temp_bytes": temporary,
            "microbatch_bytes": microbatch,
            "gradient_bytes": gradients,
            "rows_bytes": pooled,
            "expected_bytes": expected,
            "ratio": temporary / expected,
        }


if __name__ == "__main__":
    record.main(__doc__, rows)
