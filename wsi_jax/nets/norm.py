"""Normalisation without running state: every parameter lives in `params`."""

import enum
import math

import flax.linen as nn
import jax.numpy as jnp
from flax import traverse_util
from jax import lax
from jaxtyping import Array, Float, Num, PyTree


class NormKind(enum.Enum):
    """Kind of normalisation in a trunk.

    frozen: BatchNorm whose statistics are constants: those of pretrained weights, or of
        a first batch (`calibrate`).
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
    which receive no gradient.

    Attributes:
        eps: added to the variance; pretrained weights expect PyTorch's 1e-5.
        groups: number of groups of a group norm; at most gcd(groups, d).
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
                y = self._whiten(y, _per_channel(y, mean), _per_channel(y, var))
            case NormKind.layer:
                y = self._whiten(y, *_moments(y, -1))
            case NormKind.group:
                y = y.reshape(*y.shape[:-1], math.gcd(self.groups, d), -1)
                y = self._whiten(y, *_moments(y, (1, 2, 4))).reshape(x.shape)
        return (_per_channel(y, scale) * y + _per_channel(y, bias)).astype(x.dtype)

    def _whiten(self, y, mean, var):
        return (y - mean) * lax.rsqrt(var + self.eps)


def calibrate(net: nn.Module, params: PyTree, x: Num[Array, "b h w 3"]) -> PyTree:
    """Sets the statistics of frozen norms to those of their input on a batch.

    Salimans & Kingma 2016, sec. 3: every norm whitens the batch as the norms before it
    hand it on. A trunk trains from scratch without the statistics of single images that
    layer and group norms use, which hide colours.

    Args:
        params: new parameters, whose frozen norms have mean 0 and variance 1.
    """
    statistics = {}

    def whiten(norm, args, kwargs, context):
        if not isinstance(context.module, Norm) or context.method_name != "__call__":
            return norm(*args, **kwargs)
        (y,) = args
        mean, var = _moments(
            y.astype(jnp.promote_types(y.dtype, jnp.float32)), (0, 1, 2)
        )
        statistics[context.module.path] = mean.reshape(-1), var.reshape(-1)
        return norm(((y - mean) * lax.rsqrt(var + context.module.eps)).astype(y.dtype))

    with nn.intercept_methods(whiten):
        net.apply(params, x)
    flat = traverse_util.flatten_dict(params["params"])
    for path, (mean, var) in statistics.items():
        flat |= {(*path, "mean"): mean, (*path, "var"): var}
    return params | {"params": traverse_util.unflatten_dict(flat)}


def _moments(y, axes):
    return y.mean(axes, keepdims=True), y.var(axes, keepdims=True)


def _per_channel(y, a):
    """`a` [d] broadcast against y [... d], in its dtype."""
    return jnp.expand_dims(a, range(y.ndim - a.ndim)).astype(y.dtype)
