"""Vision transformers with timm's arithmetic and names."""

import enum
import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from wsi_jax.nets.pixels import RGB, standardise
from wsi_jax.nets.transformer import INIT, Bias, Block, Blocks, MlpKind, norm
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

    Attributes are those of `nets.vit_encoder.ViTEncoder`; norms and softmax have at
    least float32.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    registers: int
    mlp: MlpKind
    positions: PositionKind
    bias: Bias
    layer_scale: float
    native_px: int
    eps: float
    dtype: DTypeLike
    mean: RGB
    std: RGB

    @property
    def dim(self) -> int:
        """Number of features: the width of a token."""
        return self.width

    @nn.compact
    def tokens(self, pixels: Num[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """Class token, registers, then patches row by row, after the last norm.

        Args:
            pixels: 0 to 255 in any dtype: floats are not scaled to 1.

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
        angles = None
        if self.positions is PositionKind.rotary:
            angles = rotary_angles(y, x, self.width // self.heads)
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
            jnp.concatenate([prefix, patches], 1), angles
        )
        return norm(self.eps, self.dtype, "norm")(tokens)

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
        patches = self.tokens(pixels)[:, 1 + self.registers :]
        y, x = (side // self.patch for side in pixels.shape[1:3])
        return patches.reshape(len(patches), y, x, self.width)

    def _token(self, name, n):
        init = nn.initializers.normal(0.02)
        return self.param(name, init, (1, n, self.width), jnp.float32)

    def _learned(self, y, x):
        """Position embeddings of the tokens before patches and of these [y x d]."""
        side = self.native_px // self.patch
        n = 1 + self.registers if self.positions is PositionKind.tokens else 0
        shape = 1, n + side**2, self.width
        learned = self.param("pos_embed", INIT, shape, jnp.float32)
        grid = learned[0, n:].reshape(side, side, self.width)
        before = learned[:, :n] if n else jnp.zeros((1, 1, self.width))
        return before, resize_positions(grid, y, x).astype(self.dtype)
