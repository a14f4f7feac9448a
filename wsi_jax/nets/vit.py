"""Vision transformers: timm's arithmetic and names."""

import enum
import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from wsi_jax.nets.pixels import RGB, standardise
from wsi_jax.nets.transformer import INIT, Bias, Block, Blocks, Mlp, norm
from wsi_jax.ops.position_embedding import angles, resize
from wsi_jax.ops.stream_tile import StreamError
from wsi_jax.ops.trunk_ops import DENSE, Map, Ops


class Positions(enum.Enum):
    """How a token tells where it is.

    tokens: learned, and added to class, register and patch tokens.
    patches: learned, and added to patch tokens alone (timm's `no_embed_class`).
    rotary: queries and keys of patches turn with the place (DINOv3).
    """

    tokens = "tokens"
    patches = "patches"
    rotary = "rotary"


class PatchEmbedding(nn.Module):
    """Each square of `patch` px becomes a token."""

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
    """A vision transformer (Dosovitskiy et al. 2021): grey levels in, tokens out.

    Parameters are where timm has them: cls_token, pos_embed, patch_embed.proj,
    blocks.0.attn.qkv, blocks.0.ls1.gamma, ..., norm.

    Attributes:
        width: of a token.
        depth: blocks.
        heads: of each attention.
        hidden: numbers that a block's `fc1` makes, gates included.
        patch: side of a patch, px.
        registers: tokens for the blocks alone, read by no output (Darcet et al. 2024).
        mlp: between attentions.
        positions: how a token tells where it is.
        bias: of queries, keys and values.
        layer_scale: of the branches at first; 0 for none.
        native_px: side of the tiles that learned positions are for; on other tiles
            they are interpolated.
        eps: of the norms.
        dtype: of the matmuls; norms and softmax compute in float32 at least.
        mean: of red, green, blue in the pretraining images, where white is 1.
        std: their standard deviation.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    registers: int
    mlp: Mlp
    positions: Positions
    bias: Bias
    layer_scale: float
    native_px: int
    eps: float
    dtype: DTypeLike
    mean: RGB
    std: RGB

    @property
    def dim(self) -> int:
        """Numbers of a token."""
        return self.width

    @nn.compact
    def tokens(self, pixels: Num[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """The class token, the registers, then the patches row by row; normed.

        Args:
            pixels: grey levels, 0 to 255 in any dtype: floats are not scaled to 1.

        Raises:
            ValueError: a side is no multiple of the patch.
        """
        b, *sides, _ = pixels.shape
        if any(side % self.patch for side in sides):
            raise ValueError(
                f"tiles of {sides[0]} x {sides[1]} px do not divide into patches of "
                f"{self.patch} px; take a multiple of it"
            )
        y, x = (side // self.patch for side in sides)
        standard = standardise(pixels, self.mean, self.std, self.dtype)
        patches = PatchEmbedding(
            self.width, self.patch, self.dtype, name="patch_embed"
        )(standard)
        prefix = [self._token("cls_token", 1)]
        prefix += [self._token("reg_token", self.registers)] if self.registers else []
        prefix = jnp.concatenate(prefix, 1)
        turns = None
        if self.positions is Positions.rotary:
            turns = angles(y, x, self.width // self.heads)
        else:
            before, grid = self._learned(y, x)
            prefix, patches = prefix + before, patches + grid[None]
        prefix = jnp.broadcast_to(prefix, (b, *prefix.shape[1:])).astype(self.dtype)
        patches = patches.reshape(b, y * x, self.width).astype(self.dtype)
        block = functools.partial(
            Block, self.heads, self.hidden, self.mlp, self.bias, self.layer_scale,
            self.eps, self.dtype,
        )  # fmt: skip
        tokens = Blocks(self.depth, block, name="blocks")(
            jnp.concatenate([prefix, patches], 1), turns
        )
        return norm(self.eps, self.dtype, "norm")(tokens)

    def __call__(self, pixels: Map, ops: Ops = DENSE) -> Float[Array, "b y x d"]:
        """Pixels [b h w 3] -> the map of the patches, their tokens normed.

        Raises:
            StreamError: `ops` are not dense.
        """
        if ops is not DENSE:
            raise StreamError(
                "a ViT attends to the whole image at once and cannot go tile by tile; "
                "take a ResNet or a ConvNeXt"
            )
        patches = self.tokens(pixels)[:, 1 + self.registers :]
        y, x = (side // self.patch for side in pixels.shape[1:3])
        return patches.reshape(len(patches), y, x, self.width)

    def _token(self, name, n):
        init = nn.initializers.normal(0.02)
        return self.param(name, init, (1, n, self.width), jnp.float32)

    def _learned(self, y, x):
        """Positions of the tokens before the patches [1 p d], and of these [y x d]."""
        side = self.native_px // self.patch
        n = 1 + self.registers if self.positions is Positions.tokens else 0
        shape = 1, n + side**2, self.width
        learned = self.param("pos_embed", INIT, shape, jnp.float32)
        grid = learned[0, n:].reshape(side, side, self.width)
        before = learned[:, :n] if n else jnp.zeros((1, 1, self.width))
        return before, resize(grid, y, x).astype(self.dtype)
