"""Memory and work of a training step on long bags, pooled at once and chunk by chunk.

    python -m benchmarks.pooling --out benchmarks/results/pooling.json

Nothing runs: bytes are what XLA sets aside for temporaries of the compiled step, work
is counted from the jaxpr, loops as often as they turn. The bag itself, `bag_bytes`, is
the step's argument and comes on top.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from benchmarks import record
from wsi_jax.methods.mil import ABMIL, CLAM
from wsi_jax.training.flops import compiled_temp_bytes, count_flops
from wsi_jax.types import Bag, Task

TASK = Task(("normal", "tumor"))
FEATURES = 1024
METHODS = {"ABMIL": ABMIL, "CLAM-SB": CLAM}


def row(name: str, tiles: int, chunk: int) -> dict:
    """One training step (AdamW) on one slide."""
    shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
    bag = Bag(
        x=shape(1, tiles, FEATURES, dtype=jnp.float16),
        mask=shape(1, tiles, dtype=bool),
        target=shape(1, dtype=jnp.int32),
        weight=shape(1),
    )
    (stage,) = METHODS[name](chunk=chunk).stages(TASK, optax.adamw(1e-4))
    state = jax.eval_shape(stage.method.init, jax.random.key(0), bag)
    step = jax.jit(stage.method.step, donate_argnums=0)
    return {
        "method": name,
        "tiles": tiles,
        "chunk": chunk,
        "bag_bytes": 2 * tiles * FEATURES,
        "temp_bytes": compiled_temp_bytes(step, state, bag),
        "flops": count_flops(stage.method.step, state, bag),
    }


def rows(args: record.Arguments) -> Iterator[dict]:
    """Two pools on bags of several sizes, whole and in chunks."""
    sizes = [(20_000, 20_000), (200_000, 200_000), (20_000, 16_384)]
    sizes += [(200_000, 16_384), (200_000, 4_096)]
    for name in ("ABMIL",) if args.quick else METHODS:
        yield from (row(name, *size) for size in sizes)


if __name__ == "__main__":
    record.main(__doc__, rows)
