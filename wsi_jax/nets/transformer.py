"""Blocks of a vision transformer, attention and feedforward, with timm's names."""

import enum
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wsi_jax.ops.position_embedding import apply_rotary

INIT = nn.initializers.truncated_normal(0.02)


class MlpKind(enum.Enum):
    """Kind of feedforward layers.

    gelu: `fc1`, GELU, `fc2` (Dosovitskiy et al. 2021).
    swiglu: `fc1` to gate and value, packed in this order; SiLU of the gate, times the
        value, `fc2` (Shazeer 2020, eq. 6).
    """

    gelu = "gelu"
    swiglu = "swiglu"


class Bias(enum.Enum):
    """Which of queries, keys and values have a bias.

    all: all three.
    no_key: queries and values; the keys' is ignored (DINOv3's own files).
    none: none (DINOv3 as timm has it).
    """

    all = "all"
    no_key = "no_key"
    none = "none"


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017); softmax in float32 at least."""

    heads: int
    bias: Bias
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], angles: Float[Array, "n a"] | None
    ) -> Float[Array, "b t d"]:
        d = x.shape[-1]
        qkv = Packed(3 * d, self.bias, self.dtype, name="qkv")(x)
        heads = "b t (three h d) -> three b t h d"
        q, k, v = rearrange(qkv, heads, three=3, h=self.heads)
        if angles is not None:
            q, k = apply_rotary(q, angles), apply_rotary(k, angles)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide)
        attention = jax.nn.softmax(logits / math.sqrt(d // self.heads)).astype(v.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", attention, v)
        return nn.Dense(d, dtype=self.dtype, kernel_init=INIT, name="proj")(
            y.reshape(x.shape)
        )


class Packed(nn.Module):
    """The linear layer of queries, keys and values, packed."""

    width: int
    bias: Bias
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t e"]:
        shape = x.shape[-1], self.width
        kernel = self.param("kernel", INIT, shape, jnp.float32)
        y = x @ kernel.astype(self.dtype)
        if self.bias is Bias.none:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)
        if self.bias is Bias.no_key:
            third = self.width // 3
            bias = bias.at[third : 2 * third].set(0)
        return y + bias.astype(self.dtype)[None, None]


class Feedforward(nn.Module):
    """Two linear layers with a nonlinearity.

    Attributes:
        hidden: width after `fc1`, gates included.
    """

    hidden: int
    mlp: MlpKind
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=INIT)
        h = dense(self.hidden, name="fc1")(x)
        if self.mlp is MlpKind.swiglu:
            gate, value = jnp.split(h, 2, -1)
            h = nn.silu(gate) * value
        else:
            h = nn.gelu(h, approximate=False)
        return dense(x.shape[-1], name="fc2")(h)


class LayerScale(nn.Module):
    """Learned scale of each channel of a branch (Touvron et al. 2021, eq. 4)."""

    scale: float

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        init = nn.initializers.constant(self.scale)
        gamma = self.param("gamma", init, x.shape[-1:], jnp.float32)
        return x * gamma.astype(x.dtype)[None, None]


class Block(nn.Module):
    """Attention and feedforward, each with a norm before it and a skip connection.

    Attributes:
        config: options of the net, `nets.vit_encoder.ViTEncoder`.
    """

    config: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], angles: Float[Array, "n a"] | None
    ) -> Float[Array, "b t d"]:
        config, dtype = self.config, self.config.dtype.value
        norm = functools.partial(layer_norm, config.eps, dtype)

        def scaled(y, name):
            if not config.layer_scale:
                return y
            return LayerScale(config.layer_scale, name=name)(y)

        attend = Attention(config.heads, config.bias, dtype, name="attn")
        x = x + scaled(attend(norm("norm1")(x), angles), "ls1")
        feed = Feedforward(config.hidden, config.mlp, dtype, name="mlp")
        return x + scaled(feed(norm("norm2")(x)), "ls2")


def layer_norm(eps: float, dtype: DTypeLike, name: str) -> nn.LayerNorm:
    """Layer norm (Ba et al. 2016) over the channels of a token; moments in float32."""
    return nn.LayerNorm(eps, dtype, use_fast_variance=False, name=name)
