"""Normalisation without running state: every parameter lives in `params`."""

import enum
import math

import flax.linen as nn
import jax.numpy as jnp
from flax import traverse_util
from jax import lax
from jaxtyping import Array, Float, Num, PyTree

from wsi_jax.ops.trunk_ops import Map, Ops


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

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        scale, bias, mean, var = self._parameters(x.shape[-1])
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        match self.kind:
            case NormKind.frozen:
                y = self._whiten(y, _per_channel(y, mean), _per_channel(y, var))
            case NormKind.layer:
                y = self._whiten(y, *_moments(y, -1))
            case NormKind.group:
                y = y.reshape(*y.shape[:-1], math.gcd(self.groups, x.shape[-1]), -1)
                y = self._whiten(y, *_moments(y, (1, 2, 4))).reshape(x.shape)
        return (_per_channel(y, scale) * y + _per_channel(y, bias)).astype(x.dtype)

    def after(self, conv: nn.Module, x: Map, ops: Ops) -> Map:
        """This norm of a convolution's map.

        A frozen one is linear: it goes into the kernel and a bias, and no map between
        the two is written, or kept for the gradient.

        Args:
            conv: module of (map, operations, factor and bias of its channels).
        """
        if self.kind is not NormKind.frozen:
            apply = ops.whole if self.kind is NormKind.group else ops.each
            return apply(self, conv(x, ops))
        scale, bias, mean, var = self._parameters(conv.d)
        factor = scale * lax.rsqrt(var + self.eps)
        return conv(x, ops, factor, bias - mean * factor)

    @nn.compact
    def _parameters(self, d):
        """Scale, bias, mean and variance; the last two None but in a frozen norm."""
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        make = lambda name, init: self.param(name, init, (d,), jnp.float32)
        scale, bias = make("scale", ones), make("bias", zeros)
        if self.kind is not NormKind.frozen:
            return scale, bias, None, None
        return scale, bias, *lax.stop_gradient((make("mean", zeros), make("var", ones)))

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
        module, method = context.module, context.method_name
        frozen = isinstance(module, Norm) and module.kind is NormKind.frozen
        if not frozen or method != "after":
            return norm(*args, **kwargs)
        conv, x, ops = args
        y = conv(x, ops)
        mean, var = _moments(
            y.astype(jnp.promote_types(y.dtype, jnp.float32)), (0, 1, 2)
        )
        statistics[module.path] = mean.reshape(-1), var.reshape(-1)
        whitened = (y - mean) * lax.rsqrt(var + module.eps)
        return module(whitened.astype(y.dtype))

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
