"""What the programs of every method are made from: configs, sizes, shapes.

Nothing is computed, and no array is made.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct as Shape
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wsi_jax import configs
from wsi_jax.run.config import Experiment
from wsi_jax.run.config_file import read_config
from wsi_jax.types import Bag, Stage, Task

TASK = Task(("normal", "tumor"))
KEY = jax.eval_shape(jax.random.key, 0)


class Sizes(NamedTuple):
    """Sizes of what programs are compiled for.

    Attributes:
        variant: of each method's config; "" for the published one.
        tiles: tiles of a bag.
        features: numbers of each of them.
        encoders: names of the encoders that extract.
        extracted: tiles that are encoded at a time.
        slides_um: sides of slides of which crops are selected.
        zoom_tiles: tiles of a slide that is zoomed into.
        slides: slides that are zoomed into together, beside the config's batch.
        tiles_px: sides of streamed tiles.
    """

    variant: str
    tiles: int
    features: int
    encoders: tuple[str, ...]
    extracted: int
    slides_um: tuple[int, ...]
    zoom_tiles: tuple[int, ...]
    slides: int
    tiles_px: tuple[int, ...]

    def config(self, method: str) -> Experiment:
        """A method's config, as `wsi-jax train --method` has it."""
        return _config(method + self.variant)


class Program(NamedTuple):
    """A program of a method.

    Attributes:
        program: what it does, and at which size.
        make: mesh -> (compiled function, shapes of its arguments).
        facts: more columns of its row.
    """

    method: str
    program: str
    make: Callable[[Mesh], tuple[Callable, tuple]]
    facts: Mapping[str, int] = {}


def stages_of(config: Experiment) -> tuple[Stage, ...]:
    """The stages of a method for two classes."""
    return config.stages(TASK, config.train.optimiser.make(config.train.steps))


def placed(mesh: Mesh, tree: Any, *axes: str) -> Any:
    """Shapes of arrays that lie whole on every device of a mesh, or split along its
    axis "data"."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda a: Shape(a.shape, a.dtype, sharding=sharding), tree)


def bag(x: Any, mask: Shape) -> Bag:
    """A batch of slides, by the shapes of its tiles."""
    b = mask.shape[0]
    return Bag(x, mask, Shape((b,), jnp.int32), Shape((b,), jnp.float32))


@functools.cache
def _config(method: str) -> Experiment:
    return read_config(configs.config_path(method), "Experiment")
