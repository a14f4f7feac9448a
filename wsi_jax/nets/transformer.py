"""Blocks of a vision transformer, attention and feedforward, with timm's names."""

import enum
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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
        packed = Packed(self.heads, self.bias, self.dtype, name="qkv")
        q, k, v = packed(x)
        if angles is not None:
            q, k = apply_rotary(q, angles), apply_rotary(k, angles)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        logits = jnp.einsum("bhqe,bhke->bhqk", q, k, preferred_element_type=wide)
        attention = jax.nn.softmax(logits / math.sqrt(d // self.heads)).astype(v.dtype)
        y = jnp.einsum("bhqk,bhke->bhqe", attention, v)
        return Projection(self.dtype, name="proj")(y)


class Packed(nn.Module):
    """The linear layers of queries, keys and values, their parameters packed.

    Each is computed by itself, heads first, as attention reads them: out of one product
    a TPU would copy all three.
    """

    heads: int
    bias: Bias
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> list[Float[Array, "b h t e"]]:
        d = x.shape[-1]
        shape = 3, self.heads, d // self.heads
        kernel = self.param("kernel", INIT, (d, 3 * d), jnp.float32)
        kernels = jnp.moveaxis(kernel.astype(self.dtype).reshape(d, *shape), 1, 0)
        each = [jnp.einsum("btd,dhe->bhte", x, kernel) for kernel in kernels]
        if self.bias is Bias.none:
            return each
        bias = self.param("bias", nn.initializers.zeros, (3 * d,), jnp.float32)
        if self.bias is Bias.no_key:
            bias = bias.at[d : 2 * d].set(0)
        biases = bias.astype(self.dtype).reshape(shape)
        return [y + b[None, :, None] for y, b in zip(each, biases, strict=True)]


class Projection(nn.Module):
    """The linear layer of all heads together, with the parameters of `nn.Dense`."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, y: Float[Array, "b h t e"]) -> Float[Array, "b t d"]:
        _, heads, _, e = y.shape
        d = heads * e
        kernel = self.param("kernel", INIT, (d, d), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (d,), jnp.float32)
        kernel = kernel.astype(self.dtype).reshape(heads, e, d)
        y = jnp.einsum("bhte,hed->btd", y, kernel)
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
