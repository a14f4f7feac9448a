"""Normalisation without running state: every parameter lives in `params`."""

import enum
import math

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


class NormKind(enum.Enum):
    """Which normalisation a trunk uses.

    frozen: BatchNorm whose statistics are constants, for pretrained trunks.
    layer: over the channels of each position (Ba et al. 2016), for random trunks and
        trunks trained from scratch. Like frozen it can be streamed.
    group: over groups of channels and the whole map (Wu & He 2018); it cannot.
    """

    frozen = "frozen"
    layer = "layer"
    group = "group"


class Norm(nn.Module):
    """Normalises a map, in float32 (a float64 map stays float64).

    Parameters are `scale` and `bias` [d], and in a frozen norm `mean` and `var` [d],
    which receive no gradient: weight decay must leave them out too.

    Attributes:
        kind: which normalisation.
        eps: added to the variance; pretrained weights expect PyTorch's 1e-5.
        groups: of a group norm; gcd(groups, d) of them.
    """

    kind: NormKind
    eps: float = 1e-5
    groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        d = x.shape[-1]
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        scale = self.param("scale", ones, (d,), jnp.float32)
        bias = self.param("bias", zeros, (d,), jnp.float32)
        match self.kind:
            case NormKind.frozen:
                mean = self.param("mean", zeros, (d,), jnp.float32)
                var = self.param("var", ones, (d,), jnp.float32)
                mean, var = lax.stop_gradient((mean, var))
                y = self._whiten(y, _along(y, mean), _along(y, var))
            case NormKind.layer:
                y = self._whiten(y, *_moments(y, -1))
            case NormKind.group:
                y = y.reshape(*y.shape[:-1], math.gcd(self.groups, d), -1)
                y = self._whiten(y, *_moments(y, (1, 2, 4))).reshape(x.shape)
        return (_along(y, scale) * y + _along(y, bias)).astype(x.dtype)

    def _whiten(self, y, mean, var):
        return (y - mean) * lax.rsqrt(var + self.eps)


def _moments(y, axes):
    return y.mean(axes, keepdims=True), y.var(axes, keepdims=True)


def _along(y, a):
    """Per-channel `a` in y's dtype and rank."""
    return jnp.expand_dims(a, range(y.ndim - a.ndim)).astype(y.dtype)
