"""Vision transformers as encoders of tiles."""

import dataclasses
import enum
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PyTree

from wsi_jax.nets.transformer import Bias, Mlp
from wsi_jax.nets.trunk import TileEncoder, Trunk
from wsi_jax.nets.vit import Positions, ViT
from wsi_jax.nets.vit_names import rename


class Output(enum.Enum):
    """What becomes of a tile's tokens.

    class_token: the class token.
    class_and_mean: behind it the mean of the patches' tokens.
    mean: that alone.
    """

    class_token = "class_token"
    class_and_mean = "class_and_mean"
    mean = "mean"


@dataclasses.dataclass(kw_only=True)
class ViTEncoder(Trunk):
    """A vision transformer (Dosovitskiy et al. 2021); by itself a ViT-S/16.

    `nets.known` has those whose weights are to be had. Methods that take maps of
    features get the patches' tokens; a method that streams refuses it.

    Attributes:
        width: of a token.
        depth: blocks.
        heads: of each attention.
        hidden: numbers that a block's first linear layer makes, gates included.
        patch: side of a patch, px; tiles are multiples of it.
        registers: tokens for the blocks alone, read by no output (Darcet et al. 2024).
        mlp: between attentions.
        positions: how a token tells where it is.
        bias: of queries, keys and values.
        layer_scale: of each branch at first; 0 for none.
        native_px: side of the tiles that learned positions are for; interpolated on
            others.
        eps: added to the variance in norms.
        output: what becomes of the tokens.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    hidden: int = 1536
    patch: int = 16
    registers: int = 0
    mlp: Mlp = Mlp.gelu
    positions: Positions = Positions.tokens
    bias: Bias = Bias.all
    layer_scale: float = 0.0
    native_px: int = 224
    eps: float = 1e-6
    output: Output = Output.class_token

    binding: ClassVar[tuple[str, ...]] = (
        "heads", "mlp", "positions", "bias", "eps", "mean", "std",
    )  # fmt: skip
    shaping: ClassVar[tuple[str, ...]] = (
        "width", "depth", "hidden", "patch", "registers", "mlp", "positions", "bias",
        "layer_scale", "native_px",
    )  # fmt: skip

    def validate(self) -> None:
        """Raises ValueError for a transformer that cannot be."""
        least = min(self.width, self.depth, self.heads, self.hidden, self.patch)
        if least < 1 or self.registers < 0 or self.layer_scale < 0:
            raise ValueError(
                f"a ViT of width={self.width}, depth={self.depth}, heads={self.heads}, "
                f"hidden={self.hidden}, patch={self.patch}: no number below 1; "
                f"registers={self.registers}, layer_scale={self.layer_scale:g}: not "
                "below 0"
            )
        if self.width % self.heads:
            raise ValueError(
                f"width={self.width} does not divide by heads={self.heads}"
            )
        if self.positions is Positions.rotary and self.width // self.heads % 4:
            raise ValueError(
                f"heads of {self.width // self.heads} numbers: rotary positions take "
                "a multiple of 4"
            )
        if self.mlp is Mlp.swiglu and self.hidden % 2:
            raise ValueError(f"hidden={self.hidden}: half are gates, make it even")
        if self.native_px % self.patch:
            raise ValueError(
                f"native_px={self.native_px} is no multiple of patch={self.patch}"
            )

    @property
    def name(self) -> str:
        return "vit"

    def trunk(self) -> ViT:
        """The trunk alone, for the map of the patches [b y x d].

        Raises:
            ValueError: there is no such transformer.
        """
        self.validate()
        names = (*self.shaping, "heads", "eps", "mean", "std")
        options = {name: getattr(self, name) for name in names}
        return ViT(**options, dtype=self.dtype.value)

    def make(self) -> TileEncoder:
        """The pure functions of the trunk and what becomes of its tokens."""
        net = self.trunk()

        def apply(params: PyTree, pixels: Num[Array, "b h w 3"]) -> Float[Array, "b d"]:
            x = net.apply(params, pixels, method="tokens")
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            mean = x[:, 1 + self.registers :].mean(1)
            match self.output:
                case Output.class_token:
                    return x[:, 0]
                case Output.class_and_mean:
                    return jnp.concatenate([x[:, 0], mean], -1)
                case Output.mean:
                    return mean

        twice = self.output is Output.class_and_mean
        return TileEncoder(self.init(net), apply, net.dim * (2 if twice else 1))

    def beyond(self) -> tuple[str, ...]:
        """Classifiers, and what only pre-training needs."""
        return (
            "fc.", "head.", "pooler.", "mask_token", "local_cls_norm.", "rope_embed.",
        )  # fmt: skip

    def rename(self, name: str) -> tuple[str, int]:
        """timm's name for a tensor that DINOv2, DINOv3 or transformers saved."""
        return rename(name)

    @property
    def multiple_px(self) -> int:
        """A patch."""
        return self.patch
