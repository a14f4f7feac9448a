"""Modules in a row."""

from collections.abc import Callable

import flax.linen as nn

from wsi_jax.ops.trunk_ops import Map


class Chain(nn.Module):
    """Modules one after another, named 0, 1, ... as in PyTorch's `Sequential`.

    Attributes:
        parts: (name) -> a module of the value and the arguments of the chain.
    """

    parts: tuple[Callable, ...]

    @nn.compact
    def __call__(self, x: Map, *args) -> Map:
        for i, part in enumerate(self.parts):
            x = part(name=str(i))(x, *args)
        return x
