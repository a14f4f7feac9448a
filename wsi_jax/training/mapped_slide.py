"""A slide after the trunk's forward pass: its bag, and the gradients through it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from wsi_jax.training.compile import compile_phase
from wsi_jax.training.phases import Phases
from wsi_jax.training.tile_passes import (
    Route,
    backward_pass,
    forward_pass,
    pixel_gradients,
)
from wsi_jax.types import bucket

SHORTEST = 256  # padded length of a bag


class Pooling(NamedTuple):
    """Pooling of the map to the cells of the bag, compiled.

    Attributes:
        side: side of a cell, in positions of the map; 1 for no pooling.
        pool: map -> cells.
        unpool: (map, gradient of the cells) -> gradient of the map.
    """

    side: int
    pool: Callable
    unpool: Callable

    @classmethod
    def of(cls, side: int, pool: Callable) -> "Pooling":
        """The pooling by a function that is not compiled."""
        unpool = lambda cells, grad: jax.vjp(pool, cells)[1](grad)[0]
        return cls(side, compile_phase(pool), compile_phase(unpool))


class MappedSlide:
    """A slide after the forward pass.

    Attributes:
        yx: (row, column) of the cells with tissue [n 2], row by row.
    """

    def __init__(
        self,
        pooling: Pooling,
        phases: Phases,
        params: Any,
        route: Route,
        tissue: Bool[np.ndarray, "y x"],
        keep: bool,
    ):
        """Runs the forward pass.

        Args:
            keep: keep the seams, for gradients.
        """
        self._pooling, self._params = pooling, params
        passed = forward_pass(phases, params, route, keep)
        self._pass = phases, params, route, passed
        self._map = self._cells = passed.cells
        if pooling.side > 1:
            y, x = (-(-n // pooling.side) for n in self._map.shape[1:3])
            self._cells = np.asarray(pooling.pool(self._canvas()))[:, :y, :x]
        self.yx = np.argwhere(tissue)
        # A sliver at the slide's edge may be too narrow for a position of the map.
        self._inside = (self.yx < self._cells.shape[1:3]).all(1)
        self._index = tuple(self.yx[self._inside].T)  # of the bag, in the cells

    def bag(self) -> tuple[Float[np.ndarray, "1 n d"], Bool[np.ndarray, "1 n"]]:
        """Features and mask of the cells with tissue, row by row, padded."""
        n = len(self.yx)
        x = np.zeros((1, bucket(n, SHORTEST), self._cells.shape[-1]), self._cells.dtype)
        x[0, :n][self._inside] = self._cells[0][self._index]
        return x, np.pad(self._inside, (0, x.shape[1] - n))[None]

    def backward(self, cotangent: Float[Array, "1 n d"], grads: Any) -> Any:
        """The trunk's gradient `grads` plus that from the gradient of the bag."""
        whole = jax.tree.map(jnp.zeros_like, self._params | {"trunk": {}})
        whole |= {"trunk": grads}
        return backward_pass(*self._pass, self._map_gradient(cotangent), whole)["trunk"]

    def to_pixels(self, cotangent: Float[Array, "1 n d"]) -> Iterator:
        """The gradient of the pixels, tile by tile, from that of the bag."""
        return pixel_gradients(*self._pass, self._map_gradient(cotangent))

    def flops(self) -> int:
        """FLOPs of the forward pass."""
        phases, _, route, _ = self._pass
        return len(route.batches()) * phases.flops[0]

    def _canvas(self):
        """The map, -inf beyond it, of one of few shapes."""
        more = [(0, bucket(n, self._pooling.side) - n) for n in self._map.shape[1:3]]
        return np.pad(self._map, [(0, 0), *more, (0, 0)], constant_values=-np.inf)

    def _map_gradient(self, cotangent):
        """The gradient of the map, from that of the bag."""
        grad, n = np.zeros_like(self._cells), len(self.yx)
        grad[0][self._index] = np.asarray(cotangent)[0, :n][self._inside]
        if (side := self._pooling.side) == 1:
            return grad
        canvas, (y, x) = self._canvas(), self._map.shape[1:3]
        more = [
            (0, n // side - m)
            for n, m in zip(canvas.shape[1:3], grad.shape[1:3], strict=True)
        ]
        grad = np.pad(grad, [(0, 0), *more, (0, 0)])
        return np.asarray(self._pooling.unpool(canvas, grad))[:, :y, :x]
