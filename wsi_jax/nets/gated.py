"""Layers that begin as PyTorch's do: uniform within 1 / sqrt(fan_in), biases too."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def uniform(fan_in: int):
    """Initialiser of anything that is summed over `fan_in` inputs."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def linear(
    fan_in: int, features: int, dtype: DTypeLike | None = None, bias: bool = True
) -> nn.Dense:
    """A fully connected layer; without a dtype its matmul is of what it meets."""
    init = uniform(fan_in)
    return nn.Dense(features, bias, dtype, kernel_init=init, bias_init=init)


class Gated(nn.Module):
    """Logits of gated attention (Ilse et al. 2018, eq. 9) of rows with d features.

    Attributes:
        features: d.
        branches: m, attentions over the same rows.
        width: of the hidden layer.
        dtype: of the matmuls; the logits are at least float32.
    """

    features: int
    branches: int = 1
    width: int = 128
    dtype: DTypeLike | None = None

    def setup(self):
        self.value = linear(self.features, self.width, self.dtype)
        self.gate = linear(self.features, self.width, self.dtype)
        self.logits = linear(self.width, self.branches, self.dtype)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n m"]:
        logits = self.logits(nn.tanh(self.value(x)) * nn.sigmoid(self.gate(x)))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
