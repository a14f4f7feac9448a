"""Vision transformers with timm's arithmetic and names."""

import enum
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from wsi_jax.nets.chain import Chain
from wsi_jax.nets.pixels import standardise
from wsi_jax.nets.transformer import INIT, Block, layer_norm
from wsi_jax.ops.position_embedding import resize_positions, rotary_angles
from wsi_jax.ops.stream_tile import StreamError
from wsi_jax.ops.trunk_ops import DENSE, Map, Ops


class PositionKind(enum.Enum):
    """Kind of position embedding.

    tokens: learned, added to class, register and patch tokens.
    patches: learned, added to patch tokens alone (timm's `no_embed_class`).
    rotary: rotation of queries and keys of patches (DINOv3).
    """

    tokens = "tokens"
    patches = "patches"
    rotary = "rotary"


class PatchEmbedding(nn.Module):
    """Linear projection of each square of `patch` px to a token."""

    width: int
    patch: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b y x d"]:
        side = (self.patch, self.patch)
        return nn.Conv(
            self.width, side, side, "VALID", dtype=self.dtype, kernel_init=INIT,
            name="proj",
        )(x)  # fmt: skip


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) from pixels to tokens.

    Parameters have timm's names: cls_token, pos_embed, patch_embed.proj,
    blocks.0.attn.qkv, blocks.0.ls1.gamma, ..., norm.

    Norms and softmax have at least float32.

    Attributes:
        config: options of the net, `nets.vit_encoder.ViTEncoder`.
    """

    config: Any

    @property
    def dim(self) -> int:
        """Number of features: the width of a token."""
        return self.config.width

    @nn.compact
    def tokens(self, pixels: Num[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """Class token, registers, then patches row by row, after the last norm.

        Args:
            pixels: 0 to 255 in any dtype: floats are not scaled to 1.

        Raises:
            ValueError: a side is no multiple of the patch.
        """
        config, dtype = self.config, self.config.dtype.value
        b, *sides, _ = pixels.shape
        if any(side % config.patch for side in sides):
            raise ValueError(
                f"tiles of {sides[0]} x {sides[1]} px do not divide into patches of "
                f"{config.patch} px; take a multiple of it"
            )
        y, x = (side // config.patch for side in sides)
        standard = standardise(pixels, config.mean, config.std, dtype)
        embed = PatchEmbedding(config.width, config.patch, dtype, name="patch_embed")
        patches = embed(standard)
        prefix = [self._token("cls_token", 1)]
        if config.registers:
            prefix.append(self._token("reg_token", config.registers))
        prefix, angles = jnp.concatenate(prefix, 1), None
        if config.positions is PositionKind.rotary:
            angles = rotary_angles(y, x, config.width // config.heads)
        else:
            before, grid = self._learned(y, x)
            prefix, patches = prefix + before, patches + grid[None]
        prefix = jnp.broadcast_to(prefix, (b, *prefix.shape[1:])).astype(dtype)
        patches = patches.reshape(b, y * x, config.width).astype(dtype)
        blocks = (functools.partial(Block, config),) * config.depth
        tokens = jnp.concatenate([prefix, patches], 1)
        tokens = Chain(blocks, name="blocks")(tokens, angles)
        return layer_norm(config.eps, dtype, "norm")(tokens)

    def __call__(self, pixels: Map, ops: Ops = DENSE) -> Float[Array, "b y x d"]:
        """Pixels [b h w 3] -> the map of patch tokens, after the last norm.

        Raises:
            StreamError: `ops` are not dense.
        """
        if ops is not DENSE:
            raise StreamError(
                "a ViT attends to the whole image at once and cannot go tile by tile; "
                "take a ResNet or a ConvNeXt"
            )
        patches = self.tokens(pixels)[:, 1 + self.config.registers :]
        y, x = (side // self.config.patch for side in pixels.shape[1:3])
        return patches.reshape(len(patches), y, x, self.config.width)

    def _token(self, name, n):
        init = nn.initializers.normal(0.02)
        return self.param(name, init, (1, n, self.config.width), jnp.float32)

    def _learned(self, y, x):
        """Position embeddings of the tokens before patches and of these [y x d]."""
        config, side = self.config, self.config.native_px // self.config.patch
        n = 1 + config.registers if config.positions is PositionKind.tokens else 0
        shape = 1, n + side**2, config.width
        learned = self.param("pos_embed", INIT, shape, jnp.float32)
        grid = learned[0, n:].reshape(side, side, config.width)
        before = learned[:, :n] if n else jnp.zeros((1, 1, config.width))
        return before, resize_positions(grid, y, x).astype(config.dtype.value)
